import { AsyncLocalStorage } from "node:async_hooks";
import type { Prisma } from "../generated/client.ts";
import type { Principal } from "../principal.ts";

/** Who changes a status, as the audit shows it. A worker and the reconciler act by the right of whoever asked for the operation. */
export interface Actor {
  kind: "user" | "worker" | "reconciler" | "database";
  user?: string;
  project?: string;
  worker?: string;
  request?: string;
  operation?: string;
}

/**
 * Who acts, for as long as `actAs` runs. Every transaction asks here, so that no verb has to pass on what it does not use, and none can
 * forget to: docs/decisions/0009.
 */
const acting = new AsyncLocalStorage<Actor>();

export const actAs = <T>(actor: Actor, work: () => T): T => acting.run(actor, work);

export const actorOf = ({ userId, projectId, requestId }: Principal): Actor => ({
  kind: "user",
  user: userId,
  project: projectId,
  request: requestId,
});

/** Tells the database who acts, until the transaction ends: the triggers of the audit read it. */
export async function sayWhoActs(tx: Prisma.TransactionClient): Promise<void> {
  if (acting.getStore())
    await tx.$executeRaw`SELECT set_config('tephra.actor', ${JSON.stringify(acting.getStore())}, true)`;
}

/** Adds why, and for which operation, to the transitions that follow in this transaction. */
export async function sayWhy(
  tx: Prisma.TransactionClient,
  why: { reason: string; operation: { id: string; requestId: string; userId: string } },
): Promise<void> {
  const { reason, operation } = why;
  const asked = { kind: "database", request: operation.requestId, user: operation.userId };
  const told = { ...asked, ...acting.getStore(), operation: operation.id, reason };
  await tx.$executeRaw`SELECT set_config('tephra.actor', ${JSON.stringify(told)}, true)`;
}
