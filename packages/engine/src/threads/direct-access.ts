import { closeSync } from "node:fs";
import { VolumeStorageError } from "../errors.ts";
import { type NbdExport, requestError } from "../volume/nbd/nbd-protocol.ts";
import type { CpuPool } from "./cpu-pool.ts";
import { closeLane, laneLimitsMs, type NbdFailure } from "./nbd-lane.ts";
import type { NbdPlace, ThreadPlace } from "./thread-place.ts";

/** A volume, by what threads can open of it. */
interface DirectVolume {
  readonly descriptor?: number;
  readonly nbdExport?: NbdExport | undefined;
}

/** Connections to one export; qemu-nbd is started for twice as many. */
const connectionsMax = 32;

/** How threads get at a volume. Dispose when none uses it any more: that closes the connections. */
export class DirectAccess implements Disposable {
  readonly #file: ThreadPlace | null;
  readonly #idle: NbdPlace[];
  #connections: number;

  private constructor(file: ThreadPlace | null, connections: NbdPlace[]) {
    this.#file = file;
    this.#idle = connections;
    this.#connections = connections.length;
  }

  /** To the volume's open file, or else by up to `connections` connections, as many as its server accepts. */
  static async open(pool: CpuPool, volume: DirectVolume, connections: number): Promise<DirectAccess> {
    if (volume.descriptor !== undefined) return new DirectAccess({ descriptor: volume.descriptor }, []);
    const to = volume.nbdExport;
    if (to === undefined) return new DirectAccess(null, []);
    // Not aborted, since what was opened must be closed; a handshake takes a few seconds at most.
    const { signal } = new AbortController();
    const asked = Array.from({ length: Math.min(connections, connectionsMax) }, () =>
      pool.run({ kind: "openLane", to, limitsMs: laneLimitsMs }, [], signal),
    );
    const opened: NbdPlace[] = [];
    for (const answer of await Promise.allSettled(asked)) {
      if (answer.status === "fulfilled" && answer.value.lane !== null)
        opened.push({ nbd: answer.value.lane, writesZeroes: to.writesZeroes });
    }
    return new DirectAccess(null, opened);
  }

  /** How many threads can use it at a time; 0 when everything is to be read or written by request. */
  get places(): number {
    return this.#file === null ? this.#connections : Number.POSITIVE_INFINITY;
  }

  /** Lends a place; null when none is free. A connection that was not used well to the end is closed. */
  async use<Result extends object>(run: (place: ThreadPlace | null) => Promise<Result>): Promise<Result> {
    const place = this.#file === null ? this.#idle.pop() : undefined;
    if (place === undefined) return run(this.#file);
    let isSound = false;
    try {
      const result = await run(place);
      isSound = !("unread" in result) && !("unwritten" in result);
      return result;
    } finally {
      if (isSound) this.#idle.push(place);
      else {
        this.#connections--;
        closeSync(place.nbd);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const { nbd } of this.#idle.splice(0)) closeLane(nbd);
    this.#connections = 0;
  }
}

/** What a failed connection means to whoever reads or writes the volume. */
export function nbdError({ shown }: NbdExport, { words, errno }: NbdFailure): Error {
  return errno === null
    ? new VolumeStorageError(`${shown} ${words}.`, { retryable: true })
    : requestError(shown, errno, "");
}
