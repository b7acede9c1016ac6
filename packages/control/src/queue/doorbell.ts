import { randomUUID } from "node:crypto";
import { connectDatabase, type DatabaseConnection, sentenceOf } from "../db/connection.ts";
import type { Database } from "../db/database.ts";
import type { Logger } from "../telemetry/telemetry.ts";
import { tasksReadyChannel } from "./tasks.ts";

const retryMs = 2_000;
/**
 * A test notification sent through the regular pool must arrive within this time; otherwise the two connections lead to different
 * databases.
 */
const provedWithinMs = 5_000;

const behindPooler =
  "a pooler stands before PostgreSQL and carries no notifications: new tasks are found by polling, once a second " +
  "(database_direct_url names a way past it)";
const elsewhere = "what is notified by database_url is not heard by database_direct_url: do both lead to one database?";

/**
 * Listens for the doorbell, the NOTIFY that announces ready tasks, on a connection of its own, and reconnects when that is lost. Without a
 * connection, tasks are found by polling; the reason is logged once per change.
 */
export function listenForTasks(options: {
  url: string;
  /** The connections through which others notify. */
  database: Database;
  onRing: () => void;
  log: Logger;
}): { /** Whether what is rung arrives, as far as is known. */ hears(): boolean; stop(): Promise<void> } {
  const { url, database, onRing, log } = options;
  let stopped = false;
  let connection: DatabaseConnection | null = null;
  let retry: NodeJS.Timeout | undefined;
  let proof: NodeJS.Timeout | undefined;
  let told: string | null = null;
  const tell = (problem: string | null): void => {
    if (problem !== told && problem !== null)
      log.warn({ event: "doorbell.silent", reason: problem }, `the doorbell is not heard: ${problem}`);
    else if (problem !== told) log.info({ event: "doorbell.heard" }, "the doorbell is heard again");
    told = problem;
  };
  const again = (): void => {
    clearTimeout(proof);
    clearTimeout(retry);
    if (!stopped) retry = setTimeout(begin, retryMs);
  };

  /** Sends one notification the way everybody else does. */
  const prove = async (mine: DatabaseConnection): Promise<void> => {
    const word = randomUUID();
    mine.on("notification", ({ payload }) => {
      if (payload !== word) return;
      clearTimeout(proof);
      tell(null);
    });
    proof = setTimeout(() => tell(elsewhere), provedWithinMs);
    proof.unref();
    await database.$executeRaw`SELECT pg_notify(${tasksReadyChannel}, ${word})`;
  };

  const connect = async (): Promise<void> => {
    const mine = await connectDatabase(url, "work");
    if (stopped) return void (await mine.end().catch(() => {}));
    if (mine.pooled === true) {
      tell(behindPooler);
      return void (await mine.end().catch(() => {}));
    }
    connection = mine;
    mine.on("notification", onRing);
    mine.on("end", () => {
      if (connection === mine) connection = null;
      again();
    });
    await mine.query(`LISTEN ${tasksReadyChannel}`);
    onRing();
    await prove(mine).catch(() => clearTimeout(proof));
  };
  let running: Promise<void> = Promise.resolve();
  const begin = (): void => {
    running = connect().catch(async (error: unknown) => {
      tell(sentenceOf(error));
      await connection?.end().catch(() => {});
      again();
    });
  };
  begin();
  return {
    hears: () => connection !== null && told === null,
    async stop() {
      stopped = true;
      clearTimeout(retry);
      clearTimeout(proof);
      await running;
      await connection?.end().catch(() => {});
    },
  };
}
