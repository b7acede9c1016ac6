import { type Database, Prisma } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import { type Principal, seesAll, visibleTo } from "../principal.ts";
import { findPolicy } from "../rows/policies.ts";
import type { PolicyRun, PolicyRunItem } from "../rows/policy-runs.ts";

export const itemStates = ["waiting", "running", "succeeded", "failed", "skipped"] as const;
export type ItemState = (typeof itemStates)[number];

/** A run with how many of its items are in each state; its operation where there is one only. */
export type RunRow = PolicyRun & { items: Record<ItemState, number>; operationId: string | null };

interface Counted {
  runId: string;
  state: ItemState;
  items: number;
  operationId: string | null;
}

/** Others than admins see of a published policy's runs what concerns their own project. */
const itemsOf = (principal: Principal): Prisma.Sql =>
  seesAll(principal) ? Prisma.sql`true` : Prisma.sql`project_id = ${principal.projectId}`;

async function withCounts(database: Database, principal: Principal, runs: readonly PolicyRun[]): Promise<RunRow[]> {
  const counted = await database.$queryRaw<Counted[]>`
    SELECT run_id AS "runId", state, count(*)::int AS items, min(operation_id::text) AS "operationId" FROM policy_run_items
    WHERE run_id = ANY(${runs.map(({ id }) => id)}::uuid[]) AND ${itemsOf(principal)} GROUP BY run_id, state`;
  return runs.map((run) => {
    const own = counted.filter(({ runId }) => runId === run.id);
    const items = Object.fromEntries(
      itemStates.map((state) => [state, own.find((one) => one.state === state)?.items ?? 0]),
    );
    const [only] = own;
    const single = own.length === 1 && only?.items === 1 ? only.operationId : null;
    return { ...run, items: items as Record<ItemState, number>, operationId: single };
  });
}

/** Newest first. @throws NotFoundError for an unknown policy */
export async function listRuns(
  database: Database,
  principal: Principal,
  { policyId, limit }: { policyId: string; limit: number },
): Promise<RunRow[]> {
  const { id } = await findPolicy(database, principal, policyId);
  const runs = await database.policyRun.findMany({
    where: { policyId: id },
    orderBy: [{ dueAt: "desc" }, { id: "desc" }],
    take: limit,
  });
  return withCounts(database, principal, runs);
}

/** A run with what it has to do, in the order of their starts. @throws NotFoundError */
export async function getRun(
  database: Database,
  principal: Principal,
  asked: { policyId: string; runId: string; state?: ItemState; limit: number },
): Promise<{ run: RunRow; items: PolicyRunItem[] }> {
  const { id } = await findPolicy(database, principal, asked.policyId);
  const where = { id: asked.runId, policyId: id };
  const found = isUuid(asked.runId) ? await database.policyRun.findFirst({ where }) : null;
  const [run] = found ? await withCounts(database, principal, [found]) : [];
  if (!run) throw new NotFoundError("Policy run", asked.runId);
  const items = await database.policyRunItem.findMany({
    where: { runId: run.id, ...visibleTo(principal), ...(asked.state && { state: asked.state }) },
    orderBy: [{ startsAt: "asc" }, { id: "asc" }],
    take: asked.limit,
  });
  return { run, items };
}
