import { GuestNotFrozenError } from "../errors.ts";
import type { RunContext } from "../run/run-context.ts";
import { copyTogether } from "../volume/file/copy-together.ts";
import type { Disk, PowerState, TogetherOptions, TogetherResult } from "./hypervisor.ts";

/** Snapshots of disks whose writes cannot be stopped: valid only if no disk changed meanwhile (copyTogether). */
export async function snapshotUntouched(
  disks: readonly Disk[],
  { powerState, requireConsistency }: Pick<TogetherOptions, "requireConsistency"> & { powerState: PowerState },
  run: RunContext,
): Promise<TogetherResult> {
  // A powered-off machine has closed its file systems; on a running one they may be half written, whether or not the disks changed.
  const consistency = powerState === "SHUTOFF" ? "application" : "crash";
  if (requireConsistency && consistency === "crash")
    throw new GuestNotFrozenError("nothing but its record is known, which says that it runs");
  const copies = disks.map(({ volumePath, snapshotPath }) => ({ from: volumePath, to: snapshotPath }));
  return { ...(await copyTogether(copies, run)), frozenMs: null, consistency };
}
