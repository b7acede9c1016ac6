import { setTimeout as sleep } from "node:timers/promises";
import type { Database, Logger } from "@tephra/control";
import {
  cancelledPhases,
  claimTransfer,
  endImageTransfer,
  endSilence,
  type ImageTransferRow,
  isIn,
  newTicket,
  noteActivity,
  openTransfer,
  type TransferEnd,
  transferByTicket,
  transfersOf,
} from "@tephra/control/work";
import { type Engine, EngineError, type RunContext } from "@tephra/engine";
import { openImage, TransferLostError } from "./open-image.ts";
import type { Places } from "./places.ts";
import { publishUpload } from "./publish-upload.ts";
import { Session } from "./session.ts";

/** How long what the storage refuses is tried again before the transfer fails. */
const patienceMs = 60_000;
const retryMs = 1_000;
/** How long a request waits for its transfer to be opened again, after this process has succeeded another. */
const reopenMs = 20_000;

export interface KeeperOptions {
  database: Database;
  log: Logger;
  serverId: string;
  places: Places;
  engine: Engine;
  ticketKey: Buffer;
  requestsMax: number;
  /** @throws when this process may not change anything any more */
  fence: () => void;
}

/** The transfers that this process serves: keeps what is open in step with what their rows say. */
export class Keeper {
  readonly #options: KeeperOptions;
  readonly #sessions = new Map<string, Session>();
  /** What is being done about a transfer. */
  readonly #works = new Map<string, Promise<void>>();
  readonly #failingSince = new Map<string, number>();
  #telling: Promise<void> = Promise.resolve();

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  /** One pass: what clients did is told, who is silent is dealt with, and what has changed is begun or ended. */
  async pass(): Promise<void> {
    const { database, serverId } = this.#options;
    await this.#tellActivity();
    await endSilence(database, serverId);
    // A row that is read while something is being done about it may be out of date when that is done.
    const busy = new Set(this.#works.keys());
    const rows = new Map((await transfersOf(database, serverId)).map((row) => [row.id, row]));
    for (const [id, session] of this.#sessions) {
      if (busy.has(id)) continue;
      const row = rows.get(id);
      const isServed = row?.status === "transferring" && row.claim === session.row.claim;
      if (!isServed && row?.status !== "finalizing_success") this.#begin(id, () => this.#close(session, row));
    }
    for (const [id, row] of rows) {
      if (busy.has(id)) continue;
      const isOpen = this.#sessions.has(id);
      if (isIn(row, ["initializing", "resuming"]) || (row.status === "transferring" && !isOpen))
        this.#begin(id, () => this.#open(row));
      else if (row.status === "finalizing_success") this.#begin(id, () => this.#finish(row));
      else if (isIn(row, cancelledPhases) && !isOpen) this.#begin(id, () => this.#cleanUp(row));
    }
  }

  /** The open session that a ticket gives a right to; null for any other ticket. */
  async sessionFor(ticket: string): Promise<Session | null> {
    const { database, serverId } = this.#options;
    for (const until = performance.now() + reopenMs; ; ) {
      const row = await transferByTicket(database, serverId, ticket);
      if (row === null) return null;
      const session = this.#sessions.get(row.id);
      if (session?.isOpen === true) return session;
      if (performance.now() > until) return null;
      await sleep(100);
    }
  }

  /** Ends all of it; the transfers themselves wait for this process's successor. */
  async stop(): Promise<void> {
    await this.#tellActivity().catch(() => {});
    await Promise.allSettled([...this.#sessions.values()].map((session) => session.end()));
    await Promise.allSettled(this.#works.values());
  }

  /** One at a time for each transfer; what fails is tried again in a later pass. */
  #begin(id: string, work: () => Promise<void>): void {
    if (this.#works.has(id)) return;
    const begun = work()
      .catch((error: unknown) => {
        this.#options.log.warn({ err: error, transfer: id }, "an image transfer is stuck");
        return sleep(retryMs, undefined, { ref: false });
      })
      .finally(() => this.#works.delete(id));
    this.#works.set(id, begun);
  }

  /** One after the other: what one has taken is told when the next has been. */
  #tellActivity(): Promise<void> {
    const telling = this.#telling.then(() => this.#tellOnce());
    this.#telling = telling.catch(() => {});
    return telling;
  }

  async #tellOnce(): Promise<void> {
    const told = [...this.#sessions].map(([id, session]) => ({ id, session, activity: session.takeActivity() }));
    try {
      await noteActivity(
        this.#options.database,
        told.map(({ id, session, activity }) => ({ id, claim: session.row.claim, ...activity })),
      );
    } catch (error) {
      for (const { session, activity } of told) session.giveBack(activity);
      throw error;
    }
  }

  async #open(seen: ImageTransferRow): Promise<void> {
    const { database, serverId, ticketKey, requestsMax, log } = this.#options;
    const claimed = await claimTransfer(database, serverId, seen.id);
    if (claimed === null) return;
    try {
      const opened = await openImage(this.#options, claimed, this.#run());
      const ticket = newTicket(ticketKey, claimed.id);
      const { sizeBytes, layout } = opened.image;
      if (!(await openTransfer(database, claimed, { sizeBytes, layout, ...ticket }))) {
        await opened.image[Symbol.asyncDispose]();
        return;
      }
      this.#failingSince.delete(claimed.id);
      this.#sessions.set(claimed.id, new Session(opened.row, opened.image, requestsMax));
      log.info({ event: "transfer.opened", transfer: claimed.id, direction: claimed.direction }, "transfer opened");
    } catch (error) {
      if (error instanceof TransferLostError) return;
      await this.#fail(claimed, error);
    }
  }

  async #close(session: Session, row: ImageTransferRow | undefined): Promise<void> {
    await session.end();
    await this.#tellActivity();
    this.#sessions.delete(session.row.id);
    // Others have ended it: what was written belongs to nothing any more.
    if (row === undefined) await this.#abandon(session.row);
  }

  /** What was uploaded becomes the volume. */
  async #finish(row: ImageTransferRow): Promise<void> {
    const session = this.#sessions.get(row.id);
    try {
      await session?.finish();
      await this.#tellActivity();
      this.#sessions.delete(row.id);
      const { draft } = row;
      if (draft !== null && row.sizeBytes !== null) {
        const backend = await this.#options.places.backend(row.backend);
        this.#options.fence();
        await publishUpload(backend, { ...row, draft }, this.#run());
      }
      await this.#end(row, { phase: "finished_success" });
    } catch (error) {
      await this.#fail(row, error);
    }
  }

  async #cleanUp(row: ImageTransferRow): Promise<void> {
    await this.#abandon(row);
    await this.#end(row, { phase: "finished_cleanup", reason: row.failReason ?? "It was cancelled." });
  }

  /** What waiting does not help against ends the transfer; so does anything else that lasts. */
  async #fail(row: ImageTransferRow, error: unknown): Promise<void> {
    const since = this.#failingSince.get(row.id) ?? performance.now();
    this.#failingSince.set(row.id, since);
    const isFinal = error instanceof EngineError && !error.retryable;
    if (!isFinal && performance.now() - since < patienceMs) throw error;
    this.#failingSince.delete(row.id);
    const session = this.#sessions.get(row.id);
    if (session) await this.#close(session, row);
    await this.#abandon(row);
    await this.#end(row, { phase: "finished_failure", reason: (error as Error).message });
  }

  async #end(row: ImageTransferRow, end: TransferEnd): Promise<void> {
    const { database, log } = this.#options;
    const { id, volumeId, claim } = row;
    const ended = await endImageTransfer(database, { id, volumeId, claim }, end);
    if (ended) log.info({ event: "transfer.ended", transfer: id, ...end }, "transfer ended");
  }

  /** What cannot be removed now is left to the reaper. */
  async #abandon({ id, draft, backend, direction }: ImageTransferRow): Promise<void> {
    if (direction === "download" || draft === null) return;
    try {
      await (await this.#options.places.backend(backend)).abandonRestore(draft);
    } catch (error) {
      this.#options.log.warn({ err: error, transfer: id }, "what was uploaded could not be removed");
    }
  }

  #run(): RunContext {
    return { signal: new AbortController().signal, fence: this.#options.fence, onProgress: () => {} };
  }
}
