import { AsyncLocalStorage } from "node:async_hooks";
import type { Prisma } from "../generated/client.ts";
import type { Principal } from "../principal.ts";

/** Who changes a status, as shown in the audit log. A worker and the reconciler act on behalf of whoever requested the operation. */
export interface Actor {
  kind: "user" | "worker" | "reconciler" | "database";
  user?: string;
  project?: string;
  worker?: string;
  request?: string;
  operation?: string;
}

/**
 * The actor, for as long as `actAs` runs. Every transaction reads it here, so that no verb has to pass on what it does not use, and none
 * can forget to: docs/decisions/0009.
 */
const acting = new AsyncLocalStorage<Actor>();

export const actAs = <T>(actor: Actor, work: () => T): T => acting.run(actor, work);

export const actorOf = ({ userId, projectId, requestId }: Principal): Actor => ({
  kind: "user",
  user: userId,
  project: projectId,
  request: requestId,
});

/** When each transaction began, by the database's clock. */
const began = new WeakMap<Prisma.TransactionClient, Date>();

/** Tells the database who acts, until the transaction ends: the audit triggers read it. */
export async function sayWhoActs(tx: Prisma.TransactionClient): Promise<void> {
  const actor = acting.getStore();
  if (!actor) return;
  const [row] = await tx.$queryRaw<{ now: Date }[]>`
    SELECT now(), set_config('tephra.actor', ${JSON.stringify(actor)}, true)`;
  if (row) began.set(tx, row.now);
}

/** When the transaction began, by the database's clock: hosts need not agree on the time. */
export async function transactionTime(tx: Prisma.TransactionClient): Promise<Date> {
  const known = began.get(tx);
  if (known) return known;
  const [{ now }] = await tx.$queryRaw<[{ now: Date }]>`SELECT now()`;
  began.set(tx, now);
  return now;
}

/** Adds the reason and the operation to the transitions that follow in this transaction. */
export async function sayWhy(
  tx: Prisma.TransactionClient,
  why: { reason: string; operation: { id: string; requestId: string; userId: string } },
): Promise<void> {
  const { reason, operation } = why;
  const asked = { kind: "database", request: operation.requestId, user: operation.userId };
  const told = { ...asked, ...acting.getStore(), operation: operation.id, reason };
  await tx.$executeRaw`SELECT set_config('tephra.actor', ${JSON.stringify(told)}, true)`;
}
