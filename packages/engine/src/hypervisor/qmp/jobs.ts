import { z } from "zod";
import { HypervisorRefusedError, HypervisorUnavailableError } from "../../errors.ts";
import type { QmpClient } from "./qmp-client.ts";

/** A job without progress for this long is abandoned for now. It is left in place for the next run to find. */
const stallMs = 120_000;
const lookEveryMs = 250;

const Jobs = z.array(
  z.object({ id: z.string(), status: z.string(), "current-progress": z.number(), error: z.string().optional() }),
);

/** Runs a job to its end. One that an interrupted run has left under this id is dismissed first. */
export async function runJob(qmp: QmpClient, command: string, id: string, args: object): Promise<void> {
  const left = (await listJobs(qmp)).some((job) => job.id === id);
  if (left) await qmp.execute("job-dismiss", { id });
  await qmp.execute(command, { "job-id": id, ...args });
  await jobEnd(qmp, id);
  await qmp.execute("job-dismiss", { id });
}

/**
 * Waits until a job has succeeded, completing it when it is ready, and finalizing it when it waits for that; `beforeEnd` runs first, once.
 * A failed job is dismissed and its error thrown.
 */
export async function jobEnd(qmp: QmpClient, id: string, beforeEnd?: () => Promise<void>): Promise<void> {
  let progress = -1;
  let lastMove = performance.now();
  let completing = false;
  for (;;) {
    const job = (await listJobs(qmp)).find((each) => each.id === id);
    if (job === undefined) throw new HypervisorUnavailableError(`The hypervisor has lost its job ${id}.`);
    if (job.status === "concluded") {
      if (job.error === undefined) return;
      await qmp.execute("job-dismiss", { id });
      throw new HypervisorRefusedError(`The hypervisor's job failed: ${job.error}.`);
    }
    // Committing the top of a chain takes two steps: the job stays ready, mirroring every write, until told to complete.
    if (["ready", "pending"].includes(job.status) && !completing) {
      completing = true;
      await beforeEnd?.();
      await qmp.execute(job.status === "ready" ? "job-complete" : "job-finalize", { id });
      continue;
    }
    const now = performance.now();
    if (job["current-progress"] !== progress) lastMove = now;
    progress = job["current-progress"];
    if (now - lastMove > stallMs) throw new HypervisorUnavailableError(`The hypervisor's job ${id} gets nowhere.`);
    await qmp.changed(lookEveryMs);
  }
}

export async function listJobs(qmp: QmpClient): Promise<z.infer<typeof Jobs>> {
  return Jobs.parse(await qmp.execute("query-jobs"));
}
