import { connect, type Socket } from "node:net";
import { VolumeStorageError } from "../../errors.ts";
import {
  areZero,
  commands,
  greetingMagic,
  headerOf,
  infoExport,
  type NbdAddress,
  type NbdExport,
  optionMagic,
  optionReplyMagic,
  options,
  printable,
  replyTypes,
  requestError,
  silenceMs,
  simpleReplyMagic,
  sized,
  sizeMax,
  slowestMs,
  textBytesMax,
  transmissionFlags,
  uint16,
  uint32,
} from "./nbd-protocol.ts";

/*
 * A client of the NBD protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): fixed newstyle handshake without TLS,
 * structured replies, and the metadata contexts `base:allocation`, where the server has it, and of a bitmap. Everything that the server sends is checked: a
 * reply to nothing, one that covers other bytes than were requested, or a length beyond all limits ends the connection.
 */

/** A part of an export: `zero` when the server says that it reads as zeros. */
export interface NbdStatus {
  length: number;
  zero: boolean;
}

/** What the server says of the same bytes in both contexts, each from the same offset on. */
export interface NbdChanges {
  zeros: NbdStatus[];
  /** `dirty`: marked in the bitmap. */
  changes: { length: number; dirty: boolean }[];
}

const watchEveryMs = 1_000;
/** Bytes of one request. Servers accept up to 32 MiB; a reply of this size keeps none of them busy for long. */
const requestBytesMax = 1024 * 1024;
/** Bytes of one request for status: less than 2^32, in whole clusters of every size. */
const statusBytesMax = 1024 * 1024 * 1024;
/** Extents in one reply. A server may report any number; ours send far fewer. */
const statusExtentsMax = 1024 * 1024;
/** Pieces of one reply to a read. */
const partsMax = 1024;
/** Pieces of any reply, also those that carry nothing. */
const chunksMax = 2 * partsMax;
/** Replies to one option before the last. */
const optionRepliesMax = 1024;

/** Without a byte; and without the end of the handshake, or of a reply. */
export const clientLimitsMs = { silence: silenceMs, handshake: silenceMs, reply: slowestMs };

const chunkTypes = { none: 0, data: 1, hole: 2, blockStatus: 5, error: 0x8001 } as const;
const structuredReplyMagic = 0x668e33ef;

const allocation = "base:allocation";

interface Request {
  offset: number;
  length: number;
  /** What was requested is read into this. */
  into?: Uint8Array;
  /** Bytes of `into` that have arrived, and where. */
  filled: number;
  parts: { from: number; to: number }[];
  chunks: number;
  extents?: NbdStatus[];
  changes?: NbdChanges["changes"];
  error: Error | null;
  settle: PromiseWithResolvers<void>;
}

/** Bytes taken from the socket at a time: as many as the kernel usually holds for it. */
const chunkBytes = 256 * 1024;

/** Reads exactly as many bytes as are wanted, however they arrive. What is wanted already is copied once, from the socket's one buffer. */
class Reader {
  readonly #onBytes: () => void;
  #rest: Uint8Array = new Uint8Array(0);
  #wanted: { into: Uint8Array; done: number; settle: PromiseWithResolvers<void> } | null = null;
  #ended = false;

  /** `onBytes` is called whenever something arrives. */
  constructor(onBytes: () => void) {
    this.#onBytes = onBytes;
  }

  /** What has arrived; its memory is used again afterwards. */
  push(chunk: Uint8Array): void {
    this.#onBytes();
    const used = this.#feed(chunk);
    if (used === chunk.length) return;
    this.#rest = Buffer.concat([this.#rest, chunk.subarray(used)]);
  }

  /** Nothing arrives any more. */
  end(): void {
    this.#ended = true;
    this.#wanted?.settle.reject(new Error("it has closed the connection"));
    this.#wanted = null;
  }

  async take(bytes: number): Promise<Buffer> {
    const taken = Buffer.alloc(bytes);
    await this.fill(taken);
    return taken;
  }

  /** One call at a time. */
  fill(into: Uint8Array): Promise<void> {
    const settle = Promise.withResolvers<void>();
    this.#wanted = { into, done: 0, settle };
    this.#rest = this.#rest.subarray(this.#feed(this.#rest));
    if (this.#ended) this.end();
    return settle.promise;
  }

  /** @returns how many of these bytes were wanted */
  #feed(bytes: Uint8Array): number {
    if (this.#wanted === null) return 0;
    const { into, done, settle } = this.#wanted;
    const part = bytes.subarray(0, into.length - done);
    into.set(part, done);
    this.#wanted.done += part.length;
    if (this.#wanted.done === into.length) {
      this.#wanted = null;
      settle.resolve();
    }
    return part.length;
  }
}

/** One connection to one export. Requests may be made concurrently; replies arrive in any order. */
export class NbdClient {
  readonly #socket: Socket;
  readonly #reader: Reader;
  /** What the server is called in messages. */
  readonly #shown: string;
  readonly #requests = new Map<bigint, Request>();
  #cookie = 0n;
  #sizeBytes = 0;
  #flags = 0;
  #export: NbdExport | undefined;
  #structured = false;
  #allocationContext: number | null = null;
  /** The context of changes that was asked for, and the server's number of it. */
  readonly #changesName: string | null;
  #changesContext: number | null = null;
  #heardAt = performance.now();
  /** When the connection was begun, or later the last reply complete, or requested. */
  #doneAt = performance.now();
  #isConnecting = true;
  #ended: Error | null = null;
  #watch: NodeJS.Timeout;

  private constructor(
    address: NbdAddress,
    shown: string,
    { changes: changesName, limitsMs }: { changes: string | null; limitsMs: typeof clientLimitsMs },
  ) {
    this.#shown = shown;
    this.#changesName = changesName;
    this.#reader = new Reader(() => {
      this.#heardAt = performance.now();
    });
    const onread = {
      buffer: new Uint8Array(chunkBytes),
      callback: (bytes: number, buffer: Uint8Array): boolean => {
        this.#reader.push(buffer.subarray(0, bytes));
        return true;
      },
    };
    const socket = connect({ ...address, noDelay: true, onread });
    this.#socket = socket;
    socket.on("end", () => this.#reader.end());
    socket.on("error", ({ message }) =>
      this.#end(this.#isConnecting ? `cannot be reached: ${message}` : `has closed the connection (${message})`),
    );
    socket.on("close", () => {
      this.#end("has closed the connection");
      this.#reader.end();
    });
    this.#watch = setInterval(() => {
      const now = performance.now();
      const replyMs = this.#isConnecting ? limitsMs.handshake : limitsMs.reply;
      if (!this.#isConnecting && this.#requests.size === 0) this.#heardAt = this.#doneAt = now;
      else if (now - this.#heardAt > limitsMs.silence) this.#end(`did not answer for ${limitsMs.silence / 1000} s`);
      else if (now - this.#doneAt > replyMs) this.#end(`has completed no reply for ${replyMs / 1000} s`);
    }, watchEveryMs);
    this.#watch.unref();
  }

  /**
   * Connects to an export. `shown` is its name in messages; `changes` the name of the context that tells what has changed, which the export
   * must have then.
   *
   * @throws VolumeStorageError when there is no such server or export, or it wants TLS
   */
  static async open(
    address: NbdAddress,
    exportName: string,
    shown: string,
    { changes = null, limitsMs = clientLimitsMs }: { changes?: string | null; limitsMs?: typeof clientLimitsMs } = {},
  ): Promise<NbdClient> {
    const client = new NbdClient(address, shown, { changes, limitsMs });
    try {
      await client.#negotiate(exportName);
    } catch (error) {
      if (!(error instanceof VolumeStorageError)) client.#end((error as Error).message);
      client.#close();
      throw client.#ended ?? error;
    }
    const { remoteAddress: host = "", remotePort: port = 0 } = client.#socket;
    const peer = "path" in address ? address : { host, port };
    client.#export = {
      address: peer,
      name: exportName,
      sizeBytes: client.#sizeBytes,
      writesZeroes: client.#writesZeroes,
      shown,
    };
    void client.#receive();
    return client;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** For connections of threads; undefined where the server promises nothing about several of them. */
  get export(): NbdExport | undefined {
    return (this.#flags & transmissionFlags.multiConn) === 0 ? undefined : this.#export;
  }

  get isReadOnly(): boolean {
    return (this.#flags & transmissionFlags.readOnly) !== 0;
  }

  get #writesZeroes(): boolean {
    return (this.#flags & transmissionFlags.writeZeroes) !== 0;
  }

  /** Whether the server reports what reads as zeros. */
  get tellsZeros(): boolean {
    return this.#allocationContext !== null;
  }

  /** Fills `into` from `offset`. */
  async read(into: Uint8Array, offset: number): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let done = 0; done < into.length; done += requestBytesMax) {
      const part = into.subarray(done, done + requestBytesMax);
      parts.push(this.#ask(commands.read, { offset: offset + done, length: part.length, into: part }));
    }
    await settleAll(parts);
  }

  /** Zeros are not sent where the server makes them itself. */
  async write(data: Uint8Array, offset: number): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let done = 0; done < data.length; done += requestBytesMax) {
      const part = data.subarray(done, done + requestBytesMax);
      const place = { offset: offset + done, length: part.length };
      const isLeft = this.#writesZeroes && areZero(part);
      parts.push(isLeft ? this.#ask(commands.writeZeroes, place) : this.#ask(commands.write, { ...place, data: part }));
    }
    await settleAll(parts);
  }

  /** Settles when everything written before is durable. */
  async flush(): Promise<void> {
    if ((this.#flags & transmissionFlags.flush) === 0) return;
    await this.#ask(commands.flush, { offset: 0, length: 0 });
  }

  /** What the server says of the bytes from `offset` on: at least one part, at most `length` bytes in all. */
  async status(offset: number, length: number): Promise<NbdStatus[]> {
    const extents: NbdStatus[] = [];
    await this.#ask(commands.blockStatus, { offset, length: Math.min(length, statusBytesMax), extents });
    if (extents.length === 0) throw this.#end("reported the status of nothing");
    return extents;
  }

  /** As `status`, of what has changed, too. Both parts may end before `length`, and one before the other. */
  async changes(offset: number, length: number): Promise<NbdChanges> {
    const found: NbdChanges = { zeros: [], changes: [] };
    const asked = { offset, length: Math.min(length, statusBytesMax) };
    await this.#ask(commands.blockStatus, { ...asked, extents: found.zeros, changes: found.changes });
    if (found.changes.length === 0) throw this.#end("reported the changes of nothing");
    if (!this.tellsZeros) found.zeros = [{ length: asked.length, zero: false }];
    if (found.zeros.length === 0) throw this.#end("reported the status of nothing");
    return found;
  }

  /** Ends the connection; what is under way fails. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ended === null && !this.#isConnecting) {
      this.#socket.write(headerOf(commands.disconnect, 0n, 0, 0));
      this.#socket.end();
    }
    this.#end("was disconnected");
    this.#close();
  }

  async #negotiate(exportName: string): Promise<void> {
    const greeting = await this.#hear(18);
    if (greeting.toString("latin1", 0, 16) !== greetingMagic) throw new Error("is not an NBD server of this century");
    const offered = greeting.readUInt16BE(16);
    if ((offered & 1) === 0) throw new Error("is too old: it knows no options");
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(offered & 3);
    this.#socket.write(flags);
    this.#structured = (await this.#option(options.structuredReply, Buffer.alloc(0), () => {})) === "ack";
    if (this.#structured) {
      const wanted = [allocation, ...(this.#changesName === null ? [] : [this.#changesName])];
      const query = Buffer.concat([sized(exportName), uint32(wanted.length), ...wanted.map(sized)]);
      await this.#option(options.setMetaContext, query, (type, data) => {
        if (type !== replyTypes.metaContext || data.length < 4) return;
        const name = data.toString("utf8", 4);
        if (name === allocation) this.#allocationContext = data.readUInt32BE(0);
        else if (name === this.#changesName) this.#changesContext = data.readUInt32BE(0);
      });
    }
    if (this.#changesName !== null && this.#changesContext === null) throw new Error("does not tell what has changed");
    let isSized = false;
    const answer = await this.#option(options.go, Buffer.concat([sized(exportName), uint16(0)]), (type, data) => {
      if (type !== replyTypes.info || data.length < 12 || data.readUInt16BE(0) !== infoExport) return;
      const size = data.readBigUInt64BE(2);
      if (size > sizeMax) throw new Error(`says that it has ${size} bytes`);
      this.#sizeBytes = Number(size);
      this.#flags = data.readUInt16BE(10);
      isSized = true;
    });
    if (answer !== "ack") throw new VolumeStorageError(`${this.#shown} ${answer}.`, { retryable: false });
    if (!isSized) throw new Error("does not say how long the export is");
    this.#isConnecting = false;
    this.#doneAt = performance.now();
  }

  /** Sends an option and reads its replies up to the last. @returns `ack`, or why not */
  async #option(option: number, data: Buffer, onReply: (type: number, data: Buffer) => void): Promise<string> {
    this.#socket.write(Buffer.concat([optionMagic, uint32(option), uint32(data.length), data]));
    for (let replies = 1; ; replies++) {
      if (replies > optionRepliesMax) throw new Error(`sent more than ${optionRepliesMax} replies to one option`);
      const header = await this.#hear(20);
      if (header.readBigUInt64BE(0) !== optionReplyMagic || header.readUInt32BE(8) !== option) {
        throw new Error("sent something that answers no option");
      }
      const [type, length] = [header.readUInt32BE(12), header.readUInt32BE(16)];
      if (length > textBytesMax) throw new Error(`announced a reply of ${length} bytes`);
      const reply = await this.#hear(length);
      if (type === replyTypes.ack) return "ack";
      if (type < 2 ** 31) onReply(type, reply);
      else if (type === 0x80000005) return "wants TLS, which is not supported";
      else if (type === 0x80000006) return "has no such export";
      else return reply.length > 0 ? `refused: ${printable(reply)}` : `refused with error ${type & 0xffff}`;
    }
  }

  #hear(bytes: number): Promise<Buffer> {
    return this.#reader.take(bytes);
  }

  #ask(
    command: number,
    what: Pick<Request, "offset" | "length" | "into" | "extents" | "changes"> & { data?: Uint8Array },
  ): Promise<void> {
    if (this.#ended) return Promise.reject(this.#ended);
    const { data, ...rest } = what;
    this.#cookie += 1n;
    if (this.#requests.size === 0) this.#heardAt = this.#doneAt = performance.now();
    const settle = Promise.withResolvers<void>();
    this.#requests.set(this.#cookie, { ...rest, filled: 0, parts: [], chunks: 0, error: null, settle });
    this.#socket.write(headerOf(command, this.#cookie, what.offset, what.length));
    if (data !== undefined) this.#socket.write(data);
    return settle.promise;
  }

  async #receive(): Promise<void> {
    try {
      for (;;) await this.#reply();
    } catch (error) {
      this.#end((error as Error).message);
    }
  }

  async #reply(): Promise<void> {
    const magic = (await this.#hear(4)).readUInt32BE(0);
    if (magic === simpleReplyMagic) return this.#simpleReply(await this.#hear(12));
    if (magic !== structuredReplyMagic || !this.#structured) throw new Error("sent something that is no reply");
    const header = await this.#hear(16);
    const [isLast, type] = [(header.readUInt16BE(0) & 1) !== 0, header.readUInt16BE(2)];
    const request = this.#requestOf(header.readBigUInt64BE(4));
    const length = header.readUInt32BE(12);
    request.chunks += 1;
    if (request.chunks > chunksMax) throw new Error(`sent more than ${chunksMax} pieces`);
    if (type === chunkTypes.data) await this.#data(request, length);
    else if (type === chunkTypes.hole) await this.#hole(request, length);
    else if (type === chunkTypes.blockStatus) await this.#blockStatus(request, length);
    else if (type >= 2 ** 15) await this.#error(request, length);
    else if (type !== chunkTypes.none || length !== 0) throw new Error(`sent a chunk of the unknown type ${type}`);
    if (isLast) this.#finish(header.readBigUInt64BE(4), request);
  }

  async #simpleReply(header: Buffer): Promise<void> {
    const [errno, cookie] = [header.readUInt32BE(0), header.readBigUInt64BE(4)];
    const request = this.#requestOf(cookie);
    if (errno !== 0) request.error = requestError(this.#shown, errno, "");
    else if (request.into !== undefined) {
      if (this.#structured) throw new Error("answered a read without structure");
      await this.#reader.fill(request.into);
      request.filled = request.into.length;
    }
    this.#finish(cookie, request);
  }

  async #data(request: Request, length: number): Promise<void> {
    if (length < 8) throw new Error("sent data without an offset");
    const at = Number((await this.#hear(8)).readBigUInt64BE(0)) - request.offset;
    await this.#reader.fill(partOf(request, at, length - 8));
  }

  async #hole(request: Request, length: number): Promise<void> {
    if (length !== 12) throw new Error("sent a hole of the wrong form");
    const header = await this.#hear(12);
    const bytes = header.readUInt32BE(8);
    partOf(request, Number(header.readBigUInt64BE(0)) - request.offset, bytes).fill(0);
  }

  async #blockStatus(request: Request, length: number): Promise<void> {
    const { extents } = request;
    if (extents === undefined || length < 12 || (length - 4) % 8 !== 0)
      throw new Error("sent a status of the wrong form");
    if (length > 4 + 8 * statusExtentsMax) throw new Error("sent the status of too many extents");
    const reply = await this.#hear(length);
    const context = reply.readUInt32BE(0);
    const isOfChanges = context === this.#changesContext;
    if (!isOfChanges && context !== this.#allocationContext)
      throw new Error("sent the status of a context that nobody asked for");
    const filled: readonly unknown[] = (isOfChanges ? request.changes : extents) ?? [];
    if (filled.length > 0) throw new Error("sent the status of a context twice");
    let left = request.length;
    for (let at = 4; at < length && left > 0; at += 8) {
      const bytes = Math.min(left, reply.readUInt32BE(at));
      if (bytes === 0) throw new Error("sent the status of an empty extent");
      const flags = reply.readUInt32BE(at + 4);
      if (isOfChanges) request.changes?.push({ length: bytes, dirty: (flags & 1) !== 0 });
      else extents.push({ length: bytes, zero: (flags & 2) !== 0 });
      left -= bytes;
    }
  }

  async #error(request: Request, length: number): Promise<void> {
    if (length < 6 || length > textBytesMax) throw new Error("sent an error of the wrong form");
    const reply = await this.#hear(length);
    const text = reply.subarray(6, 6 + reply.readUInt16BE(4));
    request.error ??= requestError(this.#shown, reply.readUInt32BE(0), printable(text));
  }

  #requestOf(cookie: bigint): Request {
    const request = this.#requests.get(cookie);
    if (request === undefined) throw new Error("answered a request that nobody made");
    return request;
  }

  #finish(cookie: bigint, request: Request): void {
    if (request.error === null && request.into !== undefined && request.filled !== request.length) {
      throw new Error(`answered with ${request.filled} bytes where ${request.length} were requested`);
    }
    this.#requests.delete(cookie);
    this.#doneAt = performance.now();
    if (request.error) request.settle.reject(request.error);
    else request.settle.resolve();
  }

  /** The connection is of no more use. @returns the error that everything under way ends with */
  #end(why: string): Error {
    this.#ended ??= new VolumeStorageError(`${this.#shown} ${why}.`, { retryable: true });
    for (const { settle } of this.#requests.values()) settle.reject(this.#ended);
    this.#requests.clear();
    clearInterval(this.#watch);
    if (!this.#socket.writableEnded) this.#socket.destroy();
    return this.#ended;
  }

  #close(): void {
    clearInterval(this.#watch);
    setTimeout(() => this.#socket.destroy(), 1_000).unref();
  }
}

/** The part of what a request reads that a chunk covers, which counts as filled. @throws when it is not wholly inside, or came before */
function partOf(request: Request, at: number, bytes: number): Uint8Array {
  const { into } = request;
  if (into === undefined || at < 0 || bytes === 0 || at + bytes > into.length) {
    throw new Error("sent data that nobody requested");
  }
  if (request.parts.some(({ from, to }) => at < to && from < at + bytes)) throw new Error("sent the same data twice");
  if (request.parts.length >= partsMax) throw new Error(`sent more than ${partsMax} pieces`);
  request.parts.push({ from: at, to: at + bytes });
  request.filled += bytes;
  return into.subarray(at, at + bytes);
}

/** All end before the first failure is thrown, so that no reply arrives in a buffer that its owner uses for something else. */
async function settleAll(parts: Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(parts);
  for (const result of results) if (result.status === "rejected") throw result.reason;
}
