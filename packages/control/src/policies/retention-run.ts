import { deleteLocked } from "../backups/delete.ts";
import { startSquash } from "../backups/squash.ts";
import type { Config } from "../config.ts";
import { giveReason, transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, RefusedError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import { deleteGroupBackupIf } from "../groups/delete.ts";
import type { Principal } from "../principal.ts";
import { type Backup, lockBackup } from "../rows/backups.ts";
import { type Policy, readClock } from "../rows/policies.ts";
import { candidatesOf } from "./applies.ts";
import { retentionOf } from "./preview.ts";
import { decide, type RetentionPolicy, readRetained } from "./retained.ts";
import type { GoReason, RetainedBackup, RetentionPlan } from "./retention.ts";

/** So many volumes are looked at in one batch. */
const volumesAtOnce = 50;

/** Where the next batch goes on, of whoever reconciles. After a change of process it begins again. */
interface Walk {
  after: string;
  /** Something has to wait for what builds on it to be gone. */
  left: boolean;
}
const walks = new WeakMap<Database, Walk>();

/** What has to wait is tried again after this long. */
const againMs = 60_000;

const reasons: Readonly<Record<GoReason, string>> = {
  no_rule: "no rule keeps it",
  failed: "it failed, and a newer one is good",
  damaged: "it is damaged, and a newer one is good",
  parent_damaged: "it builds on a damaged one, and a newer one is good",
};

interface Applied {
  volumeId: string;
  policyId: string;
}

/**
 * One batch of what the policies in force delete.
 *
 * @param principalOf who asks for deletions of a project
 * @returns whether there are more volumes
 */
export async function runRetention(
  database: Database,
  config: Config,
  principalOf: (projectId: string) => Principal,
): Promise<boolean> {
  const policies = await database.policy.findMany({ where: { enabled: true, retention: { not: Prisma.DbNull } } });
  const walk = walks.get(database) ?? { after: nilUuid, left: false };
  const volumes = policies.length === 0 ? [] : await nextVolumes(database, walk.after);
  const byId = new Map(policies.map((policy) => [policy.id, policy]));
  for (const { volumeId, policyId } of await appliedTo(database, volumes)) {
    const policy = byId.get(policyId);
    if (policy && (await retainVolume(database, config, { volumeId, policy, principalOf }))) walk.left = true;
  }
  const last = volumes.at(-1);
  if (last !== undefined && volumes.length === volumesAtOnce) {
    walks.set(database, { ...walk, after: last });
    return true;
  }
  walks.delete(database);
  if (walk.left) await makeRetentionDue(database, againMs);
  return false;
}

/** SQL: what policies have made of volumes that are gone. */
const ofGone = (which: Prisma.Sql): Prisma.Sql => Prisma.sql`
  SELECT b.volume_id, b.policy_id, b.data_timestamp, b.id FROM backups b
  WHERE ${which} AND b.policy_id IS NOT NULL AND b.deleted_at IS NULL AND NOT EXISTS (SELECT FROM volumes v WHERE v.id = b.volume_id)`;

/** Volumes that there are, and those that are gone and of which policies have made backups. */
async function nextVolumes(database: Database, after: string): Promise<string[]> {
  const rows = await database.$queryRaw<{ id: string }[]>`
    (SELECT id FROM volumes WHERE id > ${after}::uuid ORDER BY id LIMIT ${volumesAtOnce})
    UNION
    (SELECT DISTINCT volume_id FROM (${ofGone(Prisma.sql`b.volume_id > ${after}::uuid`)}) gone ORDER BY volume_id LIMIT ${volumesAtOnce})
    ORDER BY id LIMIT ${volumesAtOnce}`;
  return rows.map(({ id }) => id);
}

/** The policy of each volume that has one; of one that is gone, that of its newest backup. */
const appliedTo = (database: Database, volumes: readonly string[]): Promise<Applied[]> => database.$queryRaw<Applied[]>`
  (SELECT DISTINCT ON (volume_id) volume_id AS "volumeId", policy_id AS "policyId"
    FROM (${candidatesOf(Prisma.sql`v.id = ANY(${[...volumes]}::uuid[])`)}) candidates ORDER BY volume_id, place)
  UNION ALL
  (SELECT DISTINCT ON (volume_id) volume_id, policy_id
    FROM (${ofGone(Prisma.sql`b.volume_id = ANY(${[...volumes]}::uuid[])`)}) gone ORDER BY volume_id, data_timestamp DESC, id)`;

interface OfVolume {
  volumeId: string;
  policy: Policy;
  principalOf: (projectId: string) => Principal;
}

/** @returns whether something is left to delete, since it has to wait for something else */
async function retainVolume(database: Database, config: Config, of: OfVolume): Promise<boolean> {
  const rules = retentionOf(of.policy);
  if (rules === null) return false;
  const now = await readClock(database);
  const [seen] = await readRetained(database, [of.volumeId], now);
  if (!seen) return false;
  const plan = decide(rules, seen.backups, now);
  const guard = plan.keep.flatMap(({ id, rules: kept }) => (kept.includes("min_good") ? [id] : []));
  const parents = new Map(seen.backups.map(({ id, parentId }) => [id, parentId]));
  const waiting = new Set<string>();
  for (const { id } of plan.go) {
    const outcome = waiting.has(id) ? "left" : await deleteOne(database, config, { ...of, rules, id, guard });
    // Until its objects are gone, what it builds on stays. Where it is only hidden, that can be hidden, too.
    if (outcome !== "hidden") waiting.add(parents.get(id) ?? "");
  }
  const squashing = await squashAll(database, config, { ...of, rules, plan, backups: seen.backups });
  return squashing || plan.go.some(({ id }) => waiting.has(id));
}

/** @returns whether something is left to squash, since what builds on its members has to go first, or one of them is in use */
async function squashAll(
  database: Database,
  config: Config,
  {
    plan,
    backups,
    ...of
  }: OfVolume & { rules: RetentionPolicy; plan: RetentionPlan; backups: readonly RetainedBackup[] },
): Promise<boolean> {
  const going = new Set(plan.go.map(({ id }) => id));
  let left = false;
  for (const ids of plan.squash) {
    const merged = ids.slice(0, -1);
    const isBusy = backups.some((b) => b.inUse && ids.includes(b.id));
    if (isBusy || backups.some((b) => going.has(b.id) && merged.includes(b.parentId ?? ""))) left = true;
    else await squashOne(database, config, { ...of, ids });
  }
  return left;
}

/** Asks for a squash, if under the locks it is still what retention wants. What is refused now is decided by a later run. */
async function squashOne(
  database: Database,
  config: Config,
  { volumeId, rules, ids, principalOf }: OfVolume & { rules: RetentionPolicy; ids: readonly string[] },
): Promise<void> {
  try {
    await inTransaction(database, async (tx) => {
      const target = (await lockOldestFirst(tx, ids)).get(ids.at(-1) ?? "");
      const now = await transactionTime(tx);
      const [seen] = await readRetained(tx, [volumeId], now);
      const wanted = seen ? decide(rules, seen.backups, now).squash : [];
      if (!target || !wanted.some((group) => String(group) === String(ids))) return;
      await startSquash(tx, config, principalOf(target.projectId), { backup: target });
    });
  } catch (error) {
    if (!(error instanceof InvalidError || error instanceof RefusedError)) throw error;
  }
}

type Going = OfVolume & { rules: RetentionPolicy; id: string; guard: readonly string[] };

/** @returns `left` when something has changed, or is being done to the backup: a later run decides */
async function deleteOne(database: Database, config: Config, going: Going): Promise<"hidden" | "deleting" | "left"> {
  try {
    return await inTransaction(database, async (tx) => {
      const of = { id: going.id, groupSnapshotId: { not: null } };
      const part = await tx.backup.findFirst({ where: of, select: { groupSnapshotId: true, projectId: true } });
      return part?.groupSnapshotId == null
        ? deleteAlone(tx, config, going)
        : deleteWhole(tx, config, going, { id: part.groupSnapshotId, projectId: part.projectId });
    });
  } catch (error) {
    if (error instanceof InvalidError) return "left";
    throw error;
  }
}

/** Under the locks nobody deletes the good ones that are left, nor begins to read what goes. */
async function deleteAlone(tx: Transaction, config: Config, going: Going): Promise<"hidden" | "deleting" | "left"> {
  const { id, guard, principalOf } = going;
  const backup = (await lockOldestFirst(tx, [id, ...guard])).get(id);
  const reason = (await reasonsOf(tx, going, [id]))?.get(id);
  if (!backup || reason === undefined) return "left";
  await giveReason(tx, `policy ${going.policy.name}: ${reason}`);
  const outcome = await deleteLocked(tx, config, principalOf(backup.projectId), backup);
  await tell(tx, going, { id, reason });
  return outcome;
}

/** A machine's backup goes as a whole, when all of it may go. */
async function deleteWhole(
  tx: Transaction,
  config: Config,
  going: Going,
  whole: { id: string; projectId: string },
): Promise<"deleting" | "left"> {
  const told = new Map<string, string>();
  const mayGo = async (ids: readonly string[]): Promise<boolean> => {
    const found = await reasonsOf(tx, going, ids);
    for (const [id, reason] of found ?? []) told.set(id, reason);
    if (found) await giveReason(tx, `policy ${going.policy.name}: ${found.get(going.id)}`);
    return found !== null;
  };
  const principal = going.principalOf(whole.projectId);
  if (!(await deleteGroupBackupIf(tx, config, principal, { id: whole.id, mayGo }))) return "left";
  for (const [id, reason] of told) await tell(tx, going, { id, reason });
  return "deleting";
}

/** Why each of these goes, as it is now; null when one of them stays. */
async function reasonsOf(
  tx: Transaction,
  { rules }: Going,
  ids: readonly string[],
): Promise<Map<string, string> | null> {
  const now = await transactionTime(tx);
  const rows = await tx.backup.findMany({ where: { id: { in: [...ids] } }, select: { volumeId: true } });
  const volumes = [...new Set(rows.map(({ volumeId }) => volumeId))];
  const going = (await readRetained(tx, volumes, now)).flatMap(({ backups }) => decide(rules, backups, now).go);
  const found = new Map(going.flatMap(({ id, reason }) => (ids.includes(id) ? [[id, reasons[reason]] as const] : [])));
  return found.size === ids.length ? found : null;
}

const tell = (tx: Transaction, { policy }: Going, { id, reason }: { id: string; reason: string }): Promise<void> =>
  notifyBackup(tx, "retention.deleted", id, { policy_id: policy.id, policy_name: policy.name, reason });

/** In the order of the locks: a backup after what it builds on. */
async function lockOldestFirst(tx: Transaction, ids: readonly string[]): Promise<Map<string, Backup>> {
  const rows = await tx.backup.findMany({
    where: { id: { in: [...ids] } },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
    select: { id: true },
  });
  const locked = new Map<string, Backup>();
  for (const { id } of rows) {
    const backup = await lockBackup(tx, id);
    if (backup) locked.set(id, backup);
  }
  return locked;
}

/** The name of the scheduled work, and its interval in hours. */
export const retentionSchedule = { name: "retention", hours: 1 };

/** Retention is due in `inMs`: backups of a policy have been made, or something has to wait. */
export async function makeRetentionDue(tx: Database | Transaction, inMs = 0): Promise<void> {
  const ago = retentionSchedule.hours * 3_600_000 - inMs;
  await tx.$executeRaw`
    UPDATE schedules SET ran_at = least(ran_at, now() - ${ago}::float8 * interval '1 millisecond')
    WHERE name = ${retentionSchedule.name}`;
}
