import { requestBackupWithin } from "../backups/create.ts";
import { startVerify } from "../backups/verify.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isDatabaseOutage } from "../db/outage.ts";
import { ControlError, InvalidError } from "../errors.ts";
import { notifyPolicy } from "../events/notifications.ts";
import { requestGroupBackupWithin } from "../groups/backup.ts";
import type { Principal } from "../principal.ts";
import { type Backup, lockBackup } from "../rows/backups.ts";
import {
  type DueItem,
  dueItems,
  endItem,
  endRuns,
  type ItemToVerify,
  itemsToVerify,
  noteBegun,
  putOffItem,
  settleItems,
  takeItem,
  takeToVerify,
} from "../rows/policy-runs.ts";
import { count } from "../telemetry/counters.ts";
import { beginDueRun, hasWorkers } from "./due-runs.ts";
import { type PolicyRow, readPolicy } from "./policies.ts";
import { makeRetentionDue } from "./retention-run.ts";
import { nextTime } from "./schedule.ts";

/** A pass begins so many runs and backups at most, and none after it has taken this long: the next one goes on. */
const runsAtOnce = 20;
const itemsAtOnce = 50;
const passMsMax = 2_000;

/** What cannot be backed up now is tried again after this long, until the window of its run is over. */
const retryMs = 60_000;

/** One pass: begins what is due, and ends what has ended. Where there is nothing to do it costs one statement. */
export async function runPolicies(database: Database, config: Config): Promise<void> {
  const [found] = await database.$queryRaw<{ due: string[]; live: boolean }[]>`
    SELECT ARRAY(SELECT id FROM policies WHERE next_at <= now() ORDER BY next_at LIMIT ${runsAtOnce}) AS due,
      EXISTS (SELECT FROM policy_runs WHERE finished_at IS NULL)
        OR EXISTS (SELECT FROM policy_run_items WHERE verify = 'wanted' AND state = 'succeeded') AS live`;
  const { due = [], live = false } = found ?? {};
  if (due.length === 0 && !live) return;
  const failures: unknown[] = [];
  for (const id of due) {
    await beginDueRun(database, config, id).catch((error: unknown) => {
      if (isDatabaseOutage(error)) throw error;
      failures.push(error);
    });
  }
  if (live) await settleItems(database);
  failures.push(...(await beginItems(database, config)));
  if (live) await beginVerifications(database, config);
  if (live) await endRunsOf(database, config);
  if (failures.length > 0) throw failures[0];
}

/** @returns what was thrown that is no refusal */
async function beginItems(database: Database, config: Config): Promise<unknown[]> {
  const items = await dueItems(database, itemsAtOnce);
  if (items.length === 0 || !(await hasWorkers(database, config))) return [];
  const failures: unknown[] = [];
  const began = performance.now();
  for (const item of items) {
    if (performance.now() - began > passMsMax) break;
    try {
      await beginItem(database, config, item);
    } catch (error) {
      if (isDatabaseOutage(error)) throw error;
      if (!(error instanceof ControlError)) failures.push(error);
      // What is in its way may pass, such as another backup; quotas and what is gone do not.
      if (error instanceof InvalidError)
        await putOffItem(database, item.id, { reason: error.message, waitMs: retryMs });
      else await endItem(database, item.id, { state: "failed", reason: (error as Error).message });
    }
  }
  return failures;
}

const over = "The window of the run was over before the backup could begin.";

async function beginItem(database: Database, config: Config, item: DueItem): Promise<void> {
  if (item.over) {
    const reason = item.reason === null ? over : `${over} ${item.reason}`;
    return endItem(database, item.id, { state: "skipped", reason });
  }
  const row = await database.policy.findUnique({ where: { id: item.policyId } });
  if (!row) return;
  const policy = readPolicy(row);
  const full = await whyFull(database, policy, item);
  try {
    await begin(database, config, { item, policy, full });
  } catch (error) {
    if (full !== null || !(error instanceof InvalidError && error.subject === "backup")) throw error;
    await begin(database, config, { item, policy, full: "There was no backup to build on: this one is full." });
  }
}

interface Chain {
  volumeId: string;
  members: number;
  fullAt: Date | null;
  repository: string | null;
}

/** The chains that the next incremental backups of the item would be added to. */
const chainsOf = (database: Database, item: DueItem): Promise<Chain[]> => database.$queryRaw<Chain[]>`
  SELECT v.id AS "volumeId", chain.members, chain.full_at AS "fullAt", newest.repository
  FROM volumes v LEFT JOIN LATERAL (
    SELECT b.id, b.repository FROM backups b
    WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL AND b.status = 'available'
    ORDER BY b.data_timestamp DESC, b.created_at DESC LIMIT 1) newest ON true
  CROSS JOIN LATERAL (
    WITH RECURSIVE member AS (
      SELECT b.parent_id, b.data_timestamp, 1 AS depth FROM backups b WHERE b.id = newest.id
      UNION ALL
      SELECT b.parent_id, b.data_timestamp, m.depth + 1 FROM member m JOIN backups b ON b.id = m.parent_id WHERE m.depth < 100000
    ) SELECT count(*)::int AS members, min(data_timestamp) AS full_at FROM member) chain
  WHERE v.project_id = ${item.projectId} AND (v.id = ${item.volumeId}::uuid OR v.group_id IN (
    SELECT id FROM groups WHERE project_id = ${item.projectId} AND instance_id = ${item.instanceId}::uuid))`;

/** Why the item's backup has to be full, in words; null: it is incremental. Empty: the policy says that all are. */
async function whyFull(database: Database, policy: PolicyRow, item: DueItem): Promise<string | null> {
  const { kind, schedule, repository } = policy;
  const every = "full_every" in kind && kind.full_every !== undefined ? kind.full_every : null;
  if (every === 1) return "";
  const [clock] = await database.$queryRaw<{ now: Date }[]>`SELECT now() AS now`;
  for (const { members, fullAt, repository: of } of await chainsOf(database, item)) {
    if (fullAt === null || clock === undefined) continue;
    if (every !== null && members >= every) return `The chain has ${members} members: this one is full.`;
    if ("full_on" in kind && kind.full_on !== undefined) {
      const next = nextTime({ cron: kind.full_on, timezone: schedule.timezone }, fullAt);
      if (next !== null && next <= clock.now) return `A full backup was due at ${next.toISOString()}.`;
    }
    if (repository !== null && of !== repository)
      return `The backups to build on are in repository ${of}: this one is full.`;
  }
  return null;
}

/** Who asks for what an item needs: whoever has run the policy by hand, or made it. */
const principalOf = (
  { userId, projectId, runId }: Pick<DueItem, "userId" | "projectId" | "runId">,
  policy: Pick<PolicyRow, "userId">,
): Principal => ({
  userId: userId ?? policy.userId,
  projectId,
  roles: ["member"],
  isAdmin: false,
  requestId: `req-${runId}`,
});

/** Takes the item and asks for its backup, in one transaction: it begins once, whoever finds it due. */
async function begin(
  database: Database,
  config: Config,
  { item, policy, full }: { item: DueItem; policy: PolicyRow; full: string | null },
): Promise<void> {
  const principal = principalOf(item, policy);
  const at = item.dueAt.toISOString().slice(0, 19);
  const request = {
    name: `${policy.name.slice(0, 200)} ${at}Z`,
    description: null,
    incremental: full === null,
    metadata: {},
    policy: { id: policy.id, repository: policy.repository },
  };
  await inTransaction(database, async (tx) => {
    if (!(await takeItem(tx, item.id))) return;
    const begun =
      item.volumeId === null
        ? await beginMachine(tx, config, principal, { ...request, instanceId: item.instanceId ?? "" })
        : await beginVolume(tx, config, principal, { ...request, volumeId: item.volumeId, force: policy.force });
    await noteBegun(tx, item.id, { ...begun, incremental: full === null, reason: full || null });
  });
}

type Request = Pick<
  Parameters<typeof requestBackupWithin>[3],
  "name" | "description" | "incremental" | "metadata" | "policy"
> & { name: string };

async function beginVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: Request & { volumeId: string; force: boolean },
): Promise<{ operationId: string; backupId: string }> {
  const asked = { ...request, snapshotId: null, container: null, availabilityZone: null };
  const { id: backupId } = await requestBackupWithin(tx, config, principal, asked);
  const { id } = await tx.operation.findFirstOrThrow({ where: { backupId }, select: { id: true } });
  return { operationId: id, backupId };
}

async function beginMachine(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: Request & { instanceId: string },
): Promise<{ operationId: string; backupId: null }> {
  const { instanceId } = request;
  const group = await tx.group.findFirst({ where: { projectId: principal.projectId, instanceId } });
  if (!group)
    throw new InvalidError("request", `Instance ${instanceId} has no group: it cannot be backed up as a whole.`);
  const { operationId } = await requestGroupBackupWithin(tx, config, principal, { ...request, groupId: group.id });
  return { operationId, backupId: null };
}

/** Verifies what is backed up, where the policy still says so; what has gone since is not verified. */
async function beginVerifications(database: Database, config: Config): Promise<void> {
  for (const item of await itemsToVerify(database, itemsAtOnce)) {
    await inTransaction(database, async (tx) => {
      if (!(await takeToVerify(tx, item.id))) return;
      const row = await tx.policy.findUnique({ where: { id: item.policyId } });
      const policy = row && readPolicy(row);
      if (!policy?.verify) return;
      const principal = principalOf(item, policy);
      for (const backup of await lockBackupsOf(tx, item)) {
        await startVerify(tx, config, principal, { backup, mode: policy.verify.mode, policyId: policy.id });
      }
    });
  }
}

/** The complete backups that an item's operation has made, of a volume or of all disks of a machine, locked. */
async function lockBackupsOf(tx: Transaction, { operationId }: ItemToVerify): Promise<Backup[]> {
  const ids = await tx.$queryRaw<{ id: string }[]>`
    SELECT b.id FROM operations o JOIN backups b ON b.id = o.backup_id
    WHERE (o.id = ${operationId}::uuid OR o.parent_id = ${operationId}::uuid) AND o.kind = 'backup-create' AND b.deleted_at IS NULL
    ORDER BY b.created_at, b.id`;
  const found: Backup[] = [];
  for (const { id } of ids) {
    const backup = await lockBackup(tx, id);
    if (backup?.status === "available") found.push(backup);
  }
  return found;
}

/** Ends runs of which nothing is left to do, and tells of them. */
async function endRunsOf(database: Database, config: Config): Promise<void> {
  await inTransaction(database, async (tx) => {
    const ended = await endRuns(tx);
    for (const run of ended) {
      const { succeeded, failed, skipped } = run;
      await count(tx, "policy_runs", failed > 0 ? "failed" : run.state === "late" ? "late" : "succeeded");
      const policy = await tx.policy.findUniqueOrThrow({ where: { id: run.policyId } });
      const payload = {
        ...{ policy_id: policy.id, policy_name: policy.name, tenant_id: policy.projectId, run_id: run.id },
        ...{ due_at: run.dueAt.toISOString(), state: run.state, succeeded, failed, skipped },
      };
      await notifyPolicy(tx, "policy.run.end", { host: config.hostName, payload });
    }
    if (ended.length > 0) await makeRetentionDue(tx);
  });
}
