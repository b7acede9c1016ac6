import { AsyncLocalStorage } from "node:async_hooks";
import pg from "pg";
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

/** A transaction that is about to begin: what its connection adds to BEGIN, and what the server answers. */
interface Beginning {
  actor: Actor;
  now: Date | null;
}

const beginnings = new AsyncLocalStorage<Beginning>();

/** Runs `begin`, which starts one transaction: its connection tells the database who acts in the same round trip (saidAtBegin). */
export async function beginAs<T>(begin: (said: (tx: Prisma.TransactionClient) => void) => Promise<T>): Promise<T> {
  const actor = acting.getStore();
  if (!actor) return begin(() => {});
  const beginning: Beginning = { actor, now: null };
  return beginnings.run(beginning, () =>
    begin((tx) => {
      if (beginning.now === null) throw new Error("a transaction began without saying who acts");
      began.set(tx, beginning.now);
    }),
  );
}

/** For the connection that begins a transaction: a SELECT to send with BEGIN, and what to do with its row. Null when nobody acts. */
export function saidAtBegin(): { sql: string; answered: (row: { now: Date }) => void } | null {
  const beginning = beginnings.getStore();
  if (!beginning) return null;
  const actor = pg.escapeLiteral(JSON.stringify(beginning.actor));
  return {
    sql: `SELECT now(), set_config('tephra.actor', ${actor}, true)`,
    answered: ({ now }) => {
      beginning.now = now;
    },
  };
}

/** Who acts, for a statement that is a transaction of its own to say; null when nobody does. */
export function actorToSay(): string | null {
  const actor = acting.getStore();
  return actor ? JSON.stringify(actor) : null;
}

/** When the transaction began, by the database's clock: hosts need not agree on the time. */
export async function transactionTime(tx: Prisma.TransactionClient): Promise<Date> {
  const known = began.get(tx);
  if (known) return known;
  const [{ now }] = await tx.$queryRaw<[{ now: Date }]>`SELECT now()`;
  began.set(tx, now);
  return now;
}

/** Adds the reason to the transitions that follow in this transaction. */
export async function giveReason(tx: Prisma.TransactionClient, reason: string): Promise<void> {
  const told = { kind: "database", ...acting.getStore(), reason };
  await tx.$executeRaw`SELECT set_config('tephra.actor', ${JSON.stringify(told)}, true)`;
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
