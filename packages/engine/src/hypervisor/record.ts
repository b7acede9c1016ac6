import type { RunContext } from "../run/run-context.ts";
import type { Disk, Hypervisor, PowerState, TogetherOptions, TogetherResult } from "./hypervisor.ts";
import { snapshotUntouched } from "./snapshot-untouched.ts";

/**
 * A machine about which only a record is known: its state is what the record says, and nothing can hold its writes. So a
 * machine that writes all the time cannot be backed up.
 */
export class RecordHypervisor implements Hypervisor {
  readonly #powerState: PowerState;

  constructor(powerState: PowerState) {
    this.#powerState = powerState;
  }

  async powerState(_signal: AbortSignal): Promise<PowerState> {
    return this.#powerState;
  }

  async snapshotTogether(
    disks: readonly Disk[],
    { requireConsistency }: TogetherOptions,
    run: RunContext,
  ): Promise<TogetherResult> {
    return await snapshotUntouched(disks, { powerState: this.#powerState, requireConsistency }, run);
  }

  async recover(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {}
}
