import { Prisma } from "../generated/client.ts";

/** States of an operation that has not ended. */
const states = ["queued", "running"] as const;

export const isLiveState = (state: string): boolean => states.some((live) => live === state);

/** For the `state` of operations in a query: those that have not ended. */
export const liveStates = { in: [...states] };

type OperationAlias = "operations" | "o" | "p" | "w";

const words = states.map((state) => `'${state}'`).join(", ");

/** SQL: whether the operation has not ended. */
export const isLiveOperation = (alias: OperationAlias): Prisma.Sql => Prisma.raw(`${alias}.state IN (${words})`);

/** SQL: whether the operation has ended. */
export const isEndedOperation = (alias: OperationAlias): Prisma.Sql => Prisma.raw(`${alias}.state NOT IN (${words})`);

/** SQL: whether the objects of a backup are there: it is live, or deleted and can be brought back. */
export const isStoredBackup = (alias: "backups" | "b" | "c"): Prisma.Sql =>
  Prisma.raw(`(${alias}.deleted_at IS NULL OR ${alias}.undelete_until IS NOT NULL)`);

/** The same for a query of backups. */
export const storedBackups = { OR: [{ deletedAt: null }, { undeleteUntil: { not: null } }] };

/** SQL: whether the worker, or the server of images `s`, has been heard of within `downMs`. */
export const isLiveWorker = (alias: "workers" | "w" | "s", downMs: number): Prisma.Sql =>
  Prisma.sql`${Prisma.raw(alias)}.heartbeat_at > now() - ${downMs} * interval '1 millisecond'`;
