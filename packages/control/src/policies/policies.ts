import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import type { Principal } from "../principal.ts";
import type { Priority } from "../priorities.ts";
import { findPolicy, lockPolicy, type Policy, policiesOf, readClock } from "../rows/policies.ts";
import { policyKey } from "./applies.ts";
import { checkRules, type PolicyRules, refusalOf } from "./check.ts";
import { refuseMassDeletion } from "./preview.ts";
import { BackupKinds, RetentionRules, Schedule, SquashRules, VerifyRules } from "./rules.ts";
import { nextTime, nextTimes } from "./schedule.ts";

/** A policy with its rules read. */
export type PolicyRow = Omit<Policy, "schedule" | "kind" | "retention" | "squash" | "priority" | "verify"> &
  PolicyRules & { priority: Priority; verify: VerifyRules | null };

/** The row of a policy, as the programs use it. */
export const readPolicy = (row: Policy): PolicyRow => ({
  ...row,
  priority: row.priority as Priority,
  schedule: Schedule.parse(row.schedule),
  kind: BackupKinds.parse(row.kind),
  retention: row.retention === null ? null : RetentionRules.parse(row.retention),
  squash: row.squash === null ? null : SquashRules.parse(row.squash),
  verify: row.verify === null ? null : VerifyRules.parse(row.verify),
});

export interface NewPolicy extends PolicyRules {
  /** Null: published for every project. */
  projectId: string | null;
  name: string;
  description: string | null;
  enabled: boolean;
  force: boolean;
  /** Of its backups. `high` is for admins to give: at a limit its bytes go before those of all others. */
  priority: Priority;
  /** Null: its backups are not verified. */
  verify: VerifyRules | null;
  targetHours: number | null;
}

export type PolicyChange = Partial<Omit<NewPolicy, "projectId">>;

/** JSON columns, in which null is a value of its own. */
const documentsOf = ({ schedule, kind, retention, squash, verify }: PolicyRules & Pick<NewPolicy, "verify">) => ({
  schedule: schedule as Prisma.InputJsonObject,
  kind: kind as Prisma.InputJsonObject,
  retention: (retention as Prisma.InputJsonObject | null) ?? Prisma.DbNull,
  squash: (squash as Prisma.InputJsonObject | null) ?? Prisma.DbNull,
  verify: (verify as Prisma.InputJsonObject | null) ?? Prisma.DbNull,
});

/** @throws InvalidError when the project, or the installation, has a policy of that name */
async function refuseTakenName(
  tx: Transaction,
  { projectId, name, id }: { projectId: string | null; name: string; id: string },
): Promise<void> {
  const taken = await tx.policy.findFirst({ where: { projectId, name, id: { not: id } } });
  if (taken) throw refusalOf([{ key: "policy.name", problem: `there is a policy ${JSON.stringify(name)} already` }]);
}

/** @throws InvalidError */
function refuseHigh(principal: Principal, priority: Priority | undefined): void {
  if (priority !== "high" || principal.isAdmin) return;
  throw refusalOf([
    { key: "policy.priority", problem: "only admins give high priority: it goes before the work of others" },
  ]);
}

/** @throws InvalidError that names each key that makes no sense; nothing is left behind */
export async function createPolicy(
  database: Database,
  config: Config,
  principal: Principal,
  policy: NewPolicy,
  { confirmed = false }: { confirmed?: boolean } = {},
): Promise<PolicyRow> {
  refuseHigh(principal, policy.priority);
  return inTransaction(database, async (tx) => {
    const id = randomUUID();
    const now = await readClock(tx);
    checkRules(config, policy, now);
    await refuseTakenName(tx, { ...policy, id });
    const { projectId, name, description, enabled, repository, force, priority, targetHours } = policy;
    const row = await tx.policy.create({
      data: {
        ...{ id, projectId, name, description, enabled, repository, force, priority, targetHours },
        ...documentsOf(policy),
        userId: principal.userId,
        nextAt: enabled ? nextTime(policy.schedule, now) : null,
      },
    });
    // Volumes may name it already.
    await refuseMassDeletion(tx, row, { confirmed });
    return readPolicy(row);
  });
}

/** @throws NotFoundError */
export const getPolicy = async (database: Database, principal: Principal, id: string): Promise<PolicyRow> =>
  readPolicy(await findPolicy(database, principal, id));

/** Published ones first, then by name; the caller's own project, unless an admin asks. */
export async function listPolicies(
  database: Database,
  principal: Principal,
  query: { limit: number },
): Promise<PolicyRow[]> {
  const rows = await database.policy.findMany({
    where: policiesOf(principal),
    orderBy: [{ projectId: { sort: "asc", nulls: "first" } }, { name: "asc" }, { id: "asc" }],
    take: query.limit,
  });
  return rows.map(readPolicy);
}

/** The next times at which a policy is due, or would be if it were enabled. */
export async function dueTimes(database: Database, policy: PolicyRow, count: number): Promise<Date[]> {
  return nextTimes(policy.schedule, await readClock(database), count);
}

/**
 * Changes a policy; what is absent stays. The next run is the next time of the new schedule: what was due by the old one and has not begun
 * does not begin any more.
 *
 * @throws NotFoundError, InvalidError
 */
export async function updatePolicy(
  database: Database,
  config: Config,
  principal: Principal,
  { id, change, confirmed = false }: { id: string; change: PolicyChange; confirmed?: boolean },
): Promise<PolicyRow> {
  return inTransaction(database, async (tx) => {
    await findPolicy(tx, principal, id);
    const was = readPolicy(await lockPolicy(tx, id));
    const now = await readClock(tx);
    const changed = { ...was, ...change };
    if (changed.priority !== was.priority) refuseHigh(principal, changed.priority);
    checkRules(config, changed, now);
    await refuseTakenName(tx, changed);
    const { name, description, enabled, repository, force, priority, targetHours } = changed;
    const rescheduled = change.schedule !== undefined || enabled !== was.enabled;
    const row = await tx.policy.update({
      where: { id },
      data: {
        ...{ name, description, enabled, repository, force, priority, targetHours },
        ...documentsOf(changed),
        updatedAt: now,
        ...(rescheduled && { nextAt: enabled ? nextTime(changed.schedule, now) : null }),
      },
    });
    const { retention, squash, schedule } = change;
    const decides = [retention, squash, schedule, change.enabled].some((given) => given !== undefined);
    if (decides) await refuseMassDeletion(tx, row, { confirmed });
    return readPolicy(row);
  });
}

/** What becomes of what a removed policy is assigned to: nothing, or another policy takes over. Null: it must be assigned to nothing. */
export type Successor = { kind: "none" } | { kind: "policy"; id: string } | null;

/** Volumes that name a policy in their metadata, by the name of a project's own or of a published one. */
const namedIn = ({ id, name, projectId }: Pick<Policy, "id" | "name" | "projectId">): Prisma.Sql => Prisma.sql`
  v.metadata->>${policyKey} = ${name} AND ${
    projectId === null
      ? Prisma.sql`NOT EXISTS (SELECT FROM policies o WHERE o.name = ${name} AND o.project_id = v.project_id AND o.id <> ${id}::uuid)`
      : Prisma.sql`v.project_id = ${projectId}`
  }`;

/**
 * Removes a policy with its runs. Backups that it has made stay.
 *
 * @throws NotFoundError; InvalidError when it is in use, and nothing was said of what becomes of its volumes, or the other policy is not
 *   one that may be assigned to them
 */
export async function removePolicy(
  database: Database,
  principal: Principal,
  { id, successor }: { id: string; successor: Successor },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await findPolicy(tx, principal, id);
    const policy = await lockPolicy(tx, id);
    const assigned = await tx.policyAssignment.count({ where: { policyId: id } });
    const [named] = await tx.$queryRaw<{ volumes: number }[]>`
      SELECT count(*)::int AS volumes FROM volumes v WHERE ${namedIn(policy)}`;
    const volumes = named?.volumes ?? 0;
    if (successor === null && assigned + volumes > 0) {
      const problem = `the policy has ${assigned} assignments and is named by ${volumes} volumes: say assignments=remove, or move_to another policy`;
      throw refusalOf([{ key: "assignments", problem }]);
    }
    if (successor?.kind === "policy") await moveAssignments(tx, principal, policy, successor.id);
    await tx.policy.delete({ where: { id } });
  });
}

async function moveAssignments(tx: Transaction, principal: Principal, policy: Policy, to: string): Promise<void> {
  const next =
    isUuid(to) && to !== policy.id ? await tx.policy.findFirst({ where: { id: to, ...policiesOf(principal) } }) : null;
  if (!next) throw refusalOf([{ key: "move_to", problem: `there is no other policy ${to}` }]);
  if (next.projectId !== null && next.projectId !== policy.projectId) {
    throw refusalOf([{ key: "move_to", problem: `policy ${to} is for another project` }]);
  }
  await tx.policyAssignment.updateMany({ where: { policyId: policy.id }, data: { policyId: next.id } });
  await tx.$executeRaw`
    INSERT INTO policy_assignments (id, policy_id, scope, project_id, volume_id, user_id)
    SELECT gen_random_uuid(), ${next.id}::uuid, 'volume', v.project_id, v.id, ${principal.userId}
    FROM volumes v WHERE ${namedIn(policy)}
    ON CONFLICT (volume_id) DO NOTHING`;
}
