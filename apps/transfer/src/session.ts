import type { ImageTransferRow } from "@tephra/control/work";
import { type Image, pieceBytes } from "./image.ts";

/** The session has ended while a request of it was at work. */
export class SessionEndedError extends Error {
  constructor() {
    super("The transfer is not served any more");
  }
}

/** How long requests that are at work may take to notice that their session has ended. */
const lastRequestsMs = 30_000;

/** A transfer that clients are at work with. */
export class Session {
  readonly row: ImageTransferRow;
  readonly image: Image;
  readonly #requestsMax: number;
  readonly #waiting: (() => void)[] = [];
  /** For each request, what ends it at once. */
  readonly #requests = new Set<() => void>();
  readonly #idle: (() => void)[] = [];
  readonly #freePieces: Buffer[] = [];
  #moving = 0;
  #ended = false;
  #wasAlive = true;
  #transferred = 0;

  constructor(row: ImageTransferRow, image: Image, requestsMax: number) {
    this.row = row;
    this.image = image;
    this.#requestsMax = requestsMax;
  }

  get isOpen(): boolean {
    return !this.#ended;
  }

  /** Something came from its client, or went to it. */
  touch(bytes = 0): void {
    this.#wasAlive = true;
    this.#transferred += bytes;
  }

  /**
   * Memory for a piece, of any contents. Who has no use for it any more gives it back, unless somebody may still read it or write to it:
   * new memory for each request would keep the garbage collector busy for longer than the bytes take.
   */
  takePiece(): Buffer {
    return this.#freePieces.pop() ?? Buffer.allocUnsafeSlow(pieceBytes);
  }

  givePieces(...pieces: Buffer[]): void {
    this.#freePieces.push(...pieces);
  }

  /** @throws SessionEndedError */
  requireOpen(): void {
    if (this.#ended) throw new SessionEndedError();
  }

  /** What happened since this was last called. */
  takeActivity(): { wasAlive: boolean; active: boolean; transferred: number } {
    const active = this.#requests.size > 0;
    const told = { wasAlive: this.#wasAlive, active, transferred: this.#transferred };
    this.#wasAlive = false;
    this.#transferred = 0;
    return told;
  }

  /** What could not be told is told the next time. */
  giveBack({ wasAlive, transferred }: { wasAlive: boolean; transferred: number }): void {
    this.#wasAlive ||= wasAlive;
    this.#transferred += transferred;
  }

  /**
   * Runs a request that reads or writes the image, when fewer than the allowed number are at work. `cut` ends it at once, when the session
   * ends.
   *
   * @throws SessionEndedError
   */
  async during(cut: () => void, work: () => Promise<void>): Promise<void> {
    this.requireOpen();
    this.#requests.add(cut);
    try {
      if (this.#moving >= this.#requestsMax) await new Promise<void>((go) => this.#waiting.push(go));
      else this.#moving += 1;
      try {
        this.requireOpen();
        await work();
      } finally {
        const next = this.#waiting.shift();
        if (next === undefined) this.#moving -= 1;
        else next();
      }
    } finally {
      this.#requests.delete(cut);
      if (this.#requests.size === 0) for (const settled of this.#idle.splice(0)) settled();
    }
  }

  /** Ends it: what is at work is cut off, and the image closed when that has noticed. May be called again. */
  async end(): Promise<void> {
    this.#ended = true;
    for (const cut of this.#requests) cut();
    if (this.#requests.size > 0) {
      const limit = Promise.withResolvers<void>();
      const timer = setTimeout(limit.resolve, lastRequestsMs);
      await Promise.race([new Promise<void>((settled) => this.#idle.push(settled)), limit.promise]);
      clearTimeout(timer);
    }
    await this.image[Symbol.asyncDispose]();
  }

  /** As `end`, but what is at work is waited for, and everything written made durable. */
  async finish(): Promise<void> {
    const until = performance.now() + lastRequestsMs;
    while (this.#requests.size > 0 && performance.now() < until) {
      await new Promise<void>((settled) => {
        this.#idle.push(settled);
        setTimeout(settled, 1_000).unref();
      });
    }
    if (this.isOpen && this.image.isWritable) await this.image.flush();
    await this.end();
  }
}
