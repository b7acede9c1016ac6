import type { Database, Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import type { Policy, PolicyAssignment } from "../generated/client.ts";
import { type Principal, seesAll } from "../principal.ts";

export type { Policy, PolicyAssignment };

/** The WHERE condition of what a caller may see: the project's own policies and those published for all. */
export const policiesOf = (principal: Principal): { OR?: ({ projectId: string } | { projectId: null })[] } =>
  seesAll(principal) ? {} : { OR: [{ projectId: principal.projectId }, { projectId: null }] };

/** @throws NotFoundError for an unknown id or another project's */
export async function findPolicy(tx: Database | Transaction, principal: Principal, id: string): Promise<Policy> {
  const row = isUuid(id) ? await tx.policy.findFirst({ where: { id, ...policiesOf(principal) } }) : null;
  if (!row) throw new NotFoundError("Policy", id);
  return row;
}

/** Locks a policy until the transaction ends, first of all rows but schedules. @throws NotFoundError when it is gone */
export async function lockPolicy(tx: Transaction, id: string): Promise<Policy> {
  await tx.$queryRaw`SELECT id FROM policies WHERE id = ${id}::uuid FOR UPDATE`;
  const row = await tx.policy.findUnique({ where: { id } });
  if (!row) throw new NotFoundError("Policy", id);
  return row;
}

/** The time of PostgreSQL: what is due is decided by one clock. */
export async function readClock(tx: Database | Transaction): Promise<Date> {
  const [row] = await tx.$queryRaw<{ now: Date }[]>`SELECT now() AS now`;
  if (!row) throw new Error("no time");
  return row.now;
}
