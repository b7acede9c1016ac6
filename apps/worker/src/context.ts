import type { Config, Database, Logger } from "@tephra/control";
import { type Hooks, ownPlaces } from "@tephra/control/process";
import type { ClaimedTask, TaskResult } from "@tephra/control/work";
import type { Engine, RunContext, UserPlaces } from "@tephra/engine";
import type { HungError } from "./leases.ts";
import type { Places } from "./sites.ts";

/** What every handler may use; built once by main.ts. */
export interface WorkerContext {
  config: Config;
  log: Logger;
  database: Database;
  engine: Engine;
  sites: Places;
  workerId: string;
  hooks: Hooks;
  /** A task was given up that may still stand where it stood; `settled` when it no longer does. Resolves when others know of it. */
  onHung(error: HungError, settled: Promise<unknown>): Promise<void>;
}

/** A task in the hands of its handler. */
export interface TaskAtWork extends ClaimedTask {
  /** Called when everything is done but the report. */
  reporting(): void;
}

/**
 * Does one task: loads what was planned, calls the engine, reports through a verb of control. Returning means that the report is
 * committed; what it throws says what happens next (consumers.ts). A second run of the same task does the same.
 */
export type Handler = (task: TaskAtWork, context: WorkerContext, run: RunContext) => Promise<void>;

/** What is to be reported, made right before it is. A result with nothing to tell has the claim alone. */
export function resultOf(task: TaskAtWork, bytes: Partial<Omit<TaskResult, "taskId" | "claim">> = {}): TaskResult {
  task.reporting();
  return { taskId: task.id, claim: task.claim, bytesDone: 0, bytesStored: 0, ...bytes };
}

/** Where users' files may lie: never in what the service itself uses. */
export const userPlaces = (config: Config): UserPlaces => ({ roots: config.import_roots, reserved: ownPlaces(config) });
