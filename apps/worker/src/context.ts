import type { Config, Database, Logger } from "@tephra/control";
import { ownPlaces } from "@tephra/control/process";
import type { ClaimedTask, TaskResult } from "@tephra/control/work";
import type { Engine, RunContext, UserPlaces } from "@tephra/engine";
import type { Bandwidth } from "./bandwidth.ts";
import type { GiveWay } from "./give-way.ts";
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
  bandwidth: Bandwidth;
  giveWay: GiveWay;
  /** A task was abandoned whose handler may still be stuck; `settled` resolves when it no longer is. Resolves when others know of it. */
  onHung(error: HungError, settled: Promise<unknown>): Promise<void>;
}

/** A claimed task, as its handler sees it. */
export interface TaskAtWork extends ClaimedTask {
  /** Called when everything is done except the report. */
  reporting(): void;
}

/**
 * Runs one task: loads what was planned, calls the engine, reports through a verb of control. Returning means that the report is committed;
 * an error that it throws says what happens next (consumers.ts). A second run of the same task does the same.
 */
export type Handler = (task: TaskAtWork, context: WorkerContext, run: RunContext) => Promise<void>;

/** The result to report, built right before the report. A result without figures contains the claim only. */
export function resultOf(task: TaskAtWork, bytes: Partial<Omit<TaskResult, "taskId" | "claim">> = {}): TaskResult {
  task.reporting();
  return { taskId: task.id, claim: task.claim, bytesDone: 0, bytesStored: 0, ...bytes };
}

/** Where users' files may be: never among what the service itself uses. */
export const userPlaces = (config: Config): UserPlaces => ({ roots: config.import_roots, reserved: ownPlaces(config) });
