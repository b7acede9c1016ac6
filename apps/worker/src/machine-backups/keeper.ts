import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "@tephra/control";
import { actAs, atPoint } from "@tephra/control/process";
import {
  backupsOf,
  beginMachineBackup,
  endLeftovers,
  endMachineBackup,
  hasLeftovers,
  type MachineBackupRow,
  machineOf,
  readyMachineBackup,
} from "@tephra/control/work";
import { HypervisorUnavailableError, type RunContext } from "@tephra/engine";
import { cleanUp } from "./clean-up.ts";
import { HeldBackup, type OpenOptions } from "./held-backup.ts";

/** How often it looks for what has changed, while there is anything. */
const passMs = 500;
const retryMs = 1_000;
/** Share of the lease after which this process changes nothing more: others may have taken over. */
const fenceShare = 0.6;
/** How long what an earlier backup of the machine has left is waited for. */
const leftoversMs = 30_000;

export interface BackupKeeperOptions extends OpenOptions {
  log: Logger;
  workerId: string;
}

/** The backups of machines that this process holds: keeps what is open in step with what their rows say. */
export class BackupKeeper {
  readonly #options: BackupKeeperOptions;
  readonly #held = new Map<string, HeldBackup>();
  /** What is being done about a backup. */
  readonly #works = new Map<string, Promise<void>>();
  readonly #stopping = new AbortController();
  #renewedAt = Number.NEGATIVE_INFINITY;
  #call = Promise.withResolvers<void>();
  #loop: Promise<void> = Promise.resolve();

  constructor(options: BackupKeeperOptions) {
    this.#options = options;
  }

  start(): void {
    const { log, workerId } = this.#options;
    const loop = async (): Promise<void> => {
      while (!this.#stopping.signal.aborted) {
        this.#call = Promise.withResolvers<void>();
        const isIdle = await this.#pass().catch((error: unknown) => {
          log.warn({ err: error }, "a pass over machines' backups failed");
          return false;
        });
        if (isIdle) await this.#call.promise;
        else await sleep(passMs, undefined, { signal: this.#stopping.signal }).catch(() => {}); // Stopping.
      }
    };
    this.#loop = actAs({ kind: "worker", worker: workerId }, loop);
  }

  /** Some backup is this worker's to begin, hold or clean up after: while there is none, it does not look by itself. */
  look(): void {
    this.#call.resolve();
  }

  /** Ends all of them: what they could be read of ends with this process. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.look();
    await this.#loop;
    await Promise.allSettled(this.#works.values());
    const { workerId } = this.#options;
    const ending = [...this.#held.values()].map((held) =>
      actAs({ kind: "worker", worker: workerId }, () =>
        this.#fail(held.row, new Error("The worker that held it has ended.")),
      ),
    );
    await Promise.allSettled(ending);
  }

  /** @returns whether there was nothing to do, and is nothing being done */
  async #pass(): Promise<boolean> {
    const { database, config, workerId } = this.#options;
    const askedAt = performance.now();
    // A row that is read while something is being done about it may be out of date when that is done.
    const busy = new Set(this.#works.keys());
    const { live, leftovers } = await backupsOf(database, config, { id: workerId, host: config.hostName });
    this.#renewedAt = askedAt;
    for (const [id, held] of this.#held) {
      if (!busy.has(id) && live.every((row) => row.id !== id)) this.#begin(id, () => this.#letGo(held));
    }
    for (const row of live) {
      if (busy.has(row.id)) continue;
      const held = this.#held.get(row.id);
      const error = held?.error;
      if (row.status === "initializing") this.#begin(row.id, () => this.#open(row));
      else if (held === undefined) this.#begin(row.id, () => this.#fail(row, new Error(endedEarly)));
      else if (error != null) this.#begin(row.id, () => this.#fail(row, error));
      else if (row.status === "finalizing") this.#begin(row.id, () => this.#finish(row, held));
    }
    for (const row of leftovers) {
      if (!busy.has(row.id) && !this.#held.has(row.id)) this.#begin(row.id, () => this.#cleanUp(row));
    }
    return live.length + leftovers.length + this.#held.size + this.#works.size === 0;
  }

  /** One at a time for each backup; what fails is tried again in a later pass. */
  #begin(id: string, work: () => Promise<void>): void {
    if (this.#works.has(id)) return;
    const begun = work()
      .catch((error: unknown) => {
        this.#options.log.warn({ err: error, backup: id }, "a machine's backup is stuck");
        return sleep(retryMs, undefined, { ref: false });
      })
      .finally(() => this.#works.delete(id));
    this.#works.set(id, begun);
  }

  async #open(row: MachineBackupRow): Promise<void> {
    const { database, log } = this.#options;
    if (!(await beginMachineBackup(database, row))) return;
    atPoint("machine-backup.begun");
    let held: HeldBackup;
    try {
      await this.#waitForLeftovers(row);
      const machine = await machineOf(database, row);
      if (machine === null) throw new Error("The machine is gone.");
      held = await HeldBackup.open(row, machine, this.#options, this.#run());
    } catch (error) {
      return this.#fail(row, error as Error);
    }
    atPoint("machine-backup.started");
    this.#held.set(row.id, held);
    // One that was ended meanwhile is dealt with by the next pass.
    if (!(await readyMachineBackup(database, row, held.started))) return;
    atPoint("machine-backup.ready");
    log.info({ event: "machine-backup.ready", backup: row.id, machine: row.instanceId }, "a machine can be backed up");
  }

  async #waitForLeftovers(row: MachineBackupRow): Promise<void> {
    for (const until = performance.now() + leftoversMs; await hasLeftovers(this.#options.database, row); ) {
      if (performance.now() > until)
        throw new Error("What an earlier backup of the machine has left cannot be removed.");
      await sleep(passMs, undefined, { signal: this.#stopping.signal });
    }
  }

  async #finish(row: MachineBackupRow, held: HeldBackup): Promise<void> {
    const { database, workerId, log } = this.#options;
    if (row.abandoned) return this.#fail(row, new Error(endedEarly));
    atPoint("machine-backup.ending");
    try {
      await held.end({ complete: true });
    } catch (error) {
      return this.#fail(row, error as Error);
    }
    atPoint("machine-backup.ended");
    await endMachineBackup(database, { id: row.id, workerId }, { phase: "succeeded" });
    this.#held.delete(row.id);
    log.info({ event: "machine-backup.ended", backup: row.id, phase: "succeeded" }, "a machine's backup has ended");
  }

  async #fail(row: MachineBackupRow, error: Error): Promise<void> {
    const { database, workerId, log } = this.#options;
    const held = this.#held.get(row.id);
    // The process that had the disks open may have been killed, and with it what they had recorded.
    const lost = error instanceof HypervisorUnavailableError && (await held?.isLost()) === true;
    let leftovers = held === undefined;
    try {
      await held?.end({ complete: false });
    } catch (endError) {
      leftovers = true;
      log.warn({ err: endError, backup: row.id }, "a machine's backup could not be ended, and will be cleaned up");
    }
    const end = { phase: "failed", reason: error.message, leftovers, lost } as const;
    const ended = await endMachineBackup(database, { id: row.id, workerId }, end);
    this.#held.delete(row.id);
    if (!ended) return;
    log.warn(
      { event: "machine-backup.ended", backup: row.id, phase: "failed", err: error },
      "a machine's backup failed",
    );
  }

  /** Others have ended it. */
  async #letGo(held: HeldBackup): Promise<void> {
    this.#held.delete(held.row.id);
    await held.end({ complete: false });
  }

  async #cleanUp(row: MachineBackupRow): Promise<void> {
    await cleanUp(row, this.#options);
    await endLeftovers(this.#options.database, row);
  }

  #run(): RunContext {
    const fence = (): void => {
      if (performance.now() - this.#renewedAt < fenceShare * this.#options.config.worker.lease_ms) return;
      throw new Error("This worker could not renew its lease: the backup counts as ended.");
    };
    return { signal: this.#stopping.signal, fence, onProgress: () => {} };
  }
}

const endedEarly = "It was given up before it could be read.";
