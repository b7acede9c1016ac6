import { z } from "zod";
import { GuestNotFrozenError, HypervisorRefusedError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { copyTogether } from "../../volume/file/copy-together.ts";
import type { Disk, Hypervisor, PowerState, TogetherOptions, TogetherResult } from "../hypervisor.ts";
import { snapshotUntouched } from "../snapshot-untouched.ts";
import { freezeWhile, thaw } from "./freeze-while.ts";
import { GuestAgent } from "./guest-agent.ts";
import { findDisk, prepareOverlay, removeUnused, switchToOverlays, withdrawOverlays } from "./overlays.ts";
import { CommandMissingError, QmpClient } from "./qmp-client.ts";

const Status = z.object({ status: z.string() });
const Exports = z.array(z.object({ id: z.string() }));

interface QmpSettings {
  /** Monitor socket of a running QEMU or qemu-storage-daemon: an absolute path. */
  socket: string;
  /** The socket of the guest agent, if there is one. */
  agentSocket: string | null;
  /** The file systems to freeze, by their mount points in the guest; null for all of them. */
  freezeMountpoints: readonly string[] | null;
  /** Folders in which sockets may lie. */
  socketRoots: readonly string[];
  /** The recorded state: used when nobody listens on the monitor, which from another host looks as if the machine were off. */
  powerState: PowerState;
}

/**
 * A running QEMU or qemu-storage-daemon, controlled through its monitor. Snapshots are taken in one transaction: from one instant on the
 * machine writes to overlays, so its disks stay unchanged while they are copied; at the end the writes are committed back (overlays.ts).
 * The monitor serves one client and stays connected from the first to the last step, which keeps every other worker out.
 */
export class QmpHypervisor implements Hypervisor {
  readonly #settings: QmpSettings;

  constructor(settings: QmpSettings) {
    this.#settings = settings;
  }

  async powerState(signal: AbortSignal): Promise<PowerState> {
    signal.throwIfAborted();
    using qmp = await this.#connect();
    return qmp === null ? this.#settings.powerState : await askState(qmp);
  }

  async snapshotTogether(disks: readonly Disk[], options: TogetherOptions, run: RunContext): Promise<TogetherResult> {
    run.signal.throwIfAborted();
    using qmp = await this.#connect();
    if (qmp === null) {
      for (const { volumePath } of disks) await removeUnused(volumePath);
      return await snapshotUntouched(disks, { powerState: this.#settings.powerState, ...options }, run);
    }
    using agent = await this.#connectAgent();
    await withdrawAll(qmp, agent, disks);
    try {
      const frozen = await this.#switch(qmp, agent, disks, options, run);
      if (options.requireConsistency && frozen.notFrozenBecause !== null) {
        throw new GuestNotFrozenError(frozen.notFrozenBecause);
      }
      const copies = disks.map(({ volumePath, snapshotPath }) => ({ from: volumePath, to: snapshotPath }));
      const { sizesBytes } = await copyTogether(copies, run);
      return {
        takenAt: frozen.result,
        frozenMs: frozen.frozenMs,
        consistency: frozen.notFrozenBecause === null ? "application" : "crash",
        sizesBytes,
      };
    } finally {
      // Neither the signal nor the fence stops this: it restores the machine's previous state, and while the monitor is connected here
      // nobody else can have started anything with it.
      await withdrawAll(qmp, agent, disks);
    }
  }

  async recover(disks: readonly Disk[], run: RunContext): Promise<void> {
    run.signal.throwIfAborted();
    using qmp = await this.#connect();
    if (qmp === null) {
      for (const { volumePath } of disks) await removeUnused(volumePath);
      return;
    }
    using agent = await this.#connectAgent();
    await withdrawAll(qmp, agent, disks);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Everything slow is done before the guest is frozen; while frozen, only the one transaction runs. */
  async #switch(
    qmp: QmpClient,
    agent: GuestAgent | null,
    disks: readonly Disk[],
    options: TogetherOptions,
    run: RunContext,
  ) {
    run.signal.throwIfAborted();
    run.fence();
    const pairs = await inParallel(disks, async ({ volumePath }) => {
      const disk = await findDisk(qmp, volumePath);
      return { disk, overlay: await prepareOverlay(qmp, disk, options.operationId) };
    });
    const freeze = { mountpoints: this.#settings.freezeMountpoints, limitMs: options.freezeLimitMs };
    return await freezeWhile(agent, freeze, async () => {
      run.signal.throwIfAborted();
      run.fence();
      const takenAt = new Date();
      await switchToOverlays(qmp, pairs);
      return takenAt;
    });
  }

  #connect(): Promise<QmpClient | null> {
    return QmpClient.connect(this.#settings.socket, this.#settings.socketRoots);
  }

  async #connectAgent(): Promise<GuestAgent | null> {
    const { agentSocket, socketRoots } = this.#settings;
    return agentSocket === null ? null : await GuestAgent.connect(agentSocket, socketRoots);
  }
}

async function withdrawAll(qmp: QmpClient, agent: GuestAgent | null, disks: readonly Disk[]): Promise<void> {
  // The disks are restored whether the guest can be thawed or not.
  const [thawed] = await Promise.allSettled([thawLeft(agent)]);
  await inParallel(disks, ({ volumePath }) => withdrawOverlays(qmp, volumePath));
  if (thawed.status === "rejected") throw thawed.reason;
}

/** Runs `act` for every disk; when one fails, the first failure is thrown after all others have settled. */
async function inParallel<Result>(disks: readonly Disk[], act: (disk: Disk) => Promise<Result>): Promise<Result[]> {
  const settled = await Promise.allSettled(disks.map(act));
  return settled.map((each) => {
    if (each.status === "rejected") throw each.reason;
    return each.value;
  });
}

/** Thaws a guest that an earlier run has left frozen; an agent that cannot freeze has left none. */
async function thawLeft(agent: GuestAgent | null): Promise<void> {
  const frozen = await agent?.isFrozen().catch((error: unknown) => {
    if (error instanceof HypervisorRefusedError) return false;
    throw error;
  });
  if (agent !== null && frozen === true) await thaw(agent);
}

async function askState(qmp: QmpClient): Promise<PowerState> {
  try {
    return stateOf(Status.parse(await qmp.execute("query-status")).status);
  } catch (error) {
    if (!(error instanceof CommandMissingError)) throw error;
    // A storage daemon has no machine: it counts as powered on while it exports a disk.
    const exports = Exports.parse(await qmp.execute("query-block-exports"));
    return exports.length > 0 ? "ACTIVE" : "SHUTOFF";
  }
}

/** RunState of QEMU (qapi/run-state.json). */
function stateOf(status: string): PowerState {
  switch (status) {
    case "running":
    case "watchdog":
      return "ACTIVE";
    case "shutdown":
      return "SHUTOFF";
    case "paused":
    case "debug":
    case "prelaunch":
      return "PAUSED";
    case "suspended":
      return "SUSPENDED";
    case "inmigrate":
    case "postmigrate":
    case "finish-migrate":
    case "colo":
    case "save-vm":
    case "restore-vm":
      return "MIGRATING";
    default:
      return "ERROR";
  }
}
