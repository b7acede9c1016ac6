import type { ServerResponse } from "node:http";
import { type Cursor, formatCursor, type Principal } from "@tephra/control";

export type Topic = "changes" | "progress" | "pulse";

export interface Asked {
  principal: Principal;
  token: string | undefined;
  topics: readonly Topic[];
  /** The reader's cursor as it was sent; null: it wants only what is to come. */
  after: string | null;
}

/** With so much unread, what the next one replaces is left out. */
const passingBytesMax = 65_536;
/** With so much unread, changes are left out: the reader is told to ask for everything again once it has read. */
const unreadBytesMax = 262_144;
/** What a reader of a stopping process has to read `bye` in. */
const endingMs = 1_000;

export const eventText = (event: string, data: unknown, id: Cursor | null = null): string =>
  `${id ? `id: ${formatCursor(id)}\n` : ""}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;

/** The events of one reader. What it does not read stays bounded in memory. */
export class EventStream {
  readonly asked: Asked;
  /** Of whoever the token belonged to when it was last asked. */
  principal: Principal;
  checkedAt = performance.now();
  /** It is told of changes as they come. */
  isJoined = false;
  readonly #res: ServerResponse;
  /** The last event found the reader behind, since then. */
  #fullSince: number | null = null;
  #owesResync = false;

  constructor(res: ServerResponse, asked: Asked, currentCursor: () => Cursor | null) {
    this.#res = res;
    this.asked = asked;
    this.principal = asked.principal;
    res.on("drain", () => {
      this.#fullSince = null;
      const cursor = currentCursor();
      if (this.#owesResync && cursor) this.resync(cursor);
    });
    res.writeHead(200, {
      "content-type": "text/event-stream",
      "cache-control": "no-store, no-transform",
      "x-accel-buffering": "no",
    });
    res.flushHeaders();
  }

  wants(topic: Topic): boolean {
    return this.isJoined && this.asked.topics.includes(topic);
  }

  /** How long nothing of what waits has been read. */
  get stalledMs(): number {
    return this.#fullSince === null ? 0 : performance.now() - this.#fullSince;
  }

  get unreadBytes(): number {
    return this.#res.writableLength;
  }

  /** Changes follow each other without a gap, or a `resync` follows. */
  change(text: string): void {
    if (this.#owesResync || this.unreadBytes > unreadBytesMax) this.#owesResync = true;
    else this.#write(text);
  }

  /** What the next one replaces. */
  passing(text: string): void {
    if (this.unreadBytes <= passingBytesMax) this.#write(text);
  }

  /** Everything up to the cursor has to be asked for again. */
  resync(cursor: Cursor): void {
    if (this.unreadBytes > unreadBytesMax) {
      this.#owesResync = true;
      return;
    }
    this.#owesResync = false;
    this.#write(eventText("resync", {}, cursor));
  }

  /** The last event. */
  end(text: string): void {
    this.#res.end(text);
    setTimeout(() => this.cut(), endingMs).unref();
  }

  cut(): void {
    this.#res.destroy();
  }

  #write(text: string): void {
    if (this.#res.writableEnded || this.#res.destroyed) return;
    if (!this.#res.write(text)) this.#fullSince ??= performance.now();
  }
}
