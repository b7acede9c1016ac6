import type { ClaimedTask, Config, Database, Logger, TaskResult } from "@tephra/control";
import type { Engine, RunContext } from "@tephra/engine";
import type { Sites } from "./sites.ts";

/** What every handler may use; built once by main.ts. */
export interface WorkerContext {
  config: Config;
  log: Logger;
  database: Database;
  engine: Engine;
  sites: Sites;
  workerId: string;
  hooks: Hooks;
}

/** Where a worker is: a no-op, except under test. Points: `<kind>.claimed`, and `<kind>` before every write of that kind of task. */
export interface Hooks {
  reached(point: string): void;
}

/**
 * Does one task: loads what was planned, calls the engine, reports through a verb of control. Returning means that the report is
 * committed; what it throws says what happens next (consumers.ts). A second run of the same task does the same.
 */
export type Handler = (task: ClaimedTask, context: WorkerContext, run: RunContext) => Promise<void>;

/** A result with nothing to report but the claim. */
export const resultOf = (task: ClaimedTask, bytes: Partial<Omit<TaskResult, "taskId" | "claim">> = {}): TaskResult => ({
  taskId: task.id,
  claim: task.claim,
  bytesDone: 0,
  bytesStored: 0,
  ...bytes,
});
