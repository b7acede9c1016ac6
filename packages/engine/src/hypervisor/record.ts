import type { RunContext } from "../run/run-context.ts";
import type { Disk, Hypervisor, PowerState, TogetherOptions, TogetherResult } from "./hypervisor.ts";
import { snapshotUntouched } from "./snapshot-untouched.ts";

/**
 * A machine known only by a record: its state is the recorded one, and its writes cannot be stopped. So a machine that writes
 * continuously cannot be backed up.
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
