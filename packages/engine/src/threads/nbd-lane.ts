import { closeSync, readSync, writeSync } from "node:fs";
import { errnoOf } from "../errors.ts";
import {
  areZero,
  commands,
  greetingMagic,
  headerOf,
  infoExport,
  type NbdExport,
  optionMagic,
  optionReplyMagic,
  options,
  replyTypes,
  silenceMs,
  simpleReplyMagic,
  sized,
  slowestMs,
  textBytesMax,
  transmissionFlags,
  uint16,
  uint32,
} from "../volume/nbd/nbd-protocol.ts";
import { fileCall } from "./file-calls.ts";
import { closeSocket, connectSocket, limitSilence } from "./stream-socket.ts";
import type { NbdPlace } from "./thread-place.ts";

/*
 * A connection of a thread to an export that NbdClient has opened: blocking, reads and writes only, and only simple replies, whose payload is
 * exactly what was requested. Everything else that the server sends ends its use.
 */

/** A server that has enough connections may leave another one waiting. */
export const laneLimitsMs = { handshake: 3_000, silence: silenceMs };
/** Bytes of one request to read. */
const requestBytes = 256 * 1024;
/** Requests under way at a time on one connection. More, qemu-nbd leaves waiting. */
const requestsMax = 16;
/** Bytes to ask for at a time, so that a server far away is not waited for request by request. */
export const nbdReadBytes = requestsMax * requestBytes;

/** Why a connection is of no more use. */
export interface NbdFailure {
  /** What the server did, after its name. */
  words: string;
  /** With which it refused a request; null when the connection failed. */
  errno: number | null;
}

class NbdLaneError extends Error implements NbdFailure {
  readonly errno: number | null;

  constructor(words: string, errno: number | null = null) {
    super(words);
    this.errno = errno;
  }

  get words(): string {
    return this.message;
  }
}

export interface OpenLaneRequest {
  kind: "openLane";
  to: NbdExport;
  /** How long the server may take to accept it, and later be silent. */
  limitsMs: { handshake: number; silence: number };
}

export interface OpenLaneResult {
  /** A socket, now its receiver's to close; null when there is none to be had. */
  lane: number | null;
}

/** Opens a further connection to an export. */
export function openLane({ to, limitsMs }: OpenLaneRequest): OpenLaneResult {
  let socket: number | null = null;
  try {
    socket = connectSocket(to.address, limitsMs.handshake);
    negotiate(socket, to, performance.now() + limitsMs.handshake);
    limitSilence(socket, limitsMs.silence);
    return { lane: socket };
  } catch {
    if (socket !== null) closeSocket(socket);
    return { lane: null };
  }
}

function negotiate(socket: number, to: NbdExport, until: number): void {
  const greeting = receive(socket, Buffer.alloc(18), until);
  const offered = greeting.readUInt16BE(16);
  if (greeting.toString("latin1", 0, 16) !== greetingMagic || (offered & 1) === 0) throw new NbdLaneError("is another");
  const wanted = Buffer.concat([sized(to.name), uint16(0)]);
  send(socket, Buffer.concat([uint32(offered & 3), optionMagic, uint32(options.go), uint32(wanted.length), wanted]));
  let isSame = false;
  for (;;) {
    const header = receive(socket, Buffer.alloc(20), until);
    const [type, length] = [header.readUInt32BE(12), header.readUInt32BE(16)];
    if (header.readBigUInt64BE(0) !== optionReplyMagic || header.readUInt32BE(8) !== options.go)
      throw new NbdLaneError("sent something that answers no option");
    if (length > textBytesMax) throw new NbdLaneError(`announced a reply of ${length} bytes`);
    const reply = receive(socket, Buffer.alloc(length), until);
    if (type === replyTypes.ack) break;
    if (type >= 2 ** 31) throw new NbdLaneError("refused another connection");
    if (type !== replyTypes.info || length < 12 || reply.readUInt16BE(0) !== infoExport) continue;
    const flags = reply.readUInt16BE(10);
    isSame = reply.readBigUInt64BE(2) === BigInt(to.sizeBytes) && (flags & transmissionFlags.multiConn) !== 0;
  }
  if (!isSame) throw new NbdLaneError("has another export of that name");
}

/** A part of an export, and where to. */
export interface NbdPart {
  offset: number;
  into: Uint8Array;
}

/** Reads all parts. @returns null, or why the connection must be closed */
export function readByNbd(socket: number, parts: readonly NbdPart[]): NbdFailure | null {
  return failureOf(() => {
    const requests = requestsFor(parts);
    const due = new Map<bigint, Uint8Array>();
    let cookie = process.hrtime.bigint();
    for (let next = requests.next(); !next.done || due.size > 0; ) {
      const headers: Buffer[] = [];
      for (; !next.done && due.size < requestsMax; next = requests.next(), cookie++) {
        const { offset, into } = next.value;
        due.set(cookie, into);
        headers.push(headerOf(commands.read, cookie, offset, into.length));
      }
      if (headers.length > 0) send(socket, Buffer.concat(headers));
      const until = performance.now() + slowestMs;
      const answered = replyTo(socket, due, until);
      receive(socket, due.get(answered) as Uint8Array, until);
      due.delete(answered);
    }
  });
}

function* requestsFor(parts: readonly NbdPart[]): Generator<NbdPart, undefined> {
  for (const { offset, into } of parts) {
    for (let at = 0; at < into.length; at += requestBytes) {
      yield { offset: offset + at, into: into.subarray(at, at + requestBytes) };
    }
  }
}

/** Writes at most what one check of the fence allows. @returns null when the server has it, or why the connection must be closed */
export function writeByNbd(
  { nbd: socket, writesZeroes }: NbdPlace,
  data: Uint8Array,
  offset: number,
): NbdFailure | null {
  return failureOf(() => {
    const cookie = process.hrtime.bigint();
    const isLeft = writesZeroes && areZero(data);
    send(socket, headerOf(isLeft ? commands.writeZeroes : commands.write, cookie, offset, data.length));
    if (!isLeft) send(socket, data);
    replyTo(socket, new Map([[cookie, data]]), performance.now() + slowestMs);
  });
}

/** @returns which of the requests the server's next reply answers. Its payload follows. */
function replyTo(socket: number, due: ReadonlyMap<bigint, unknown>, until: number): bigint {
  const header = receive(socket, Buffer.alloc(16), until);
  const [magic, errno, cookie] = [header.readUInt32BE(0), header.readUInt32BE(4), header.readBigUInt64BE(8)];
  if (magic !== simpleReplyMagic) throw new NbdLaneError("sent something that is no reply");
  if (!due.has(cookie)) throw new NbdLaneError("answered a request that nobody made");
  if (errno !== 0) throw new NbdLaneError("refused a request", errno);
  return cookie;
}

function failureOf(call: () => void): NbdFailure | null {
  try {
    call();
    return null;
  } catch (error) {
    if (!(error instanceof NbdLaneError)) throw error;
    return { words: error.words, errno: error.errno };
  }
}

/** Fills `into`; `until`, by performance.now(), whatever the server sends. */
function receive<Bytes extends Uint8Array>(socket: number, into: Bytes, until: number): Bytes {
  for (let done = 0; done < into.length; ) {
    const at = done;
    const bytes = socketCall(() => readSync(socket, into, at, into.length - at, null));
    if (bytes === 0) throw new NbdLaneError("has closed the connection");
    if (performance.now() > until) throw new NbdLaneError("takes too long");
    done += bytes;
  }
  return into;
}

function send(socket: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    const at = done;
    done += socketCall(() => writeSync(socket, bytes, at, bytes.length - at, null));
  }
}

function socketCall(call: () => number): number {
  for (;;) {
    try {
      return fileCall(call);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === "EINTR") continue;
      const isSilent = errno === "EAGAIN";
      throw new NbdLaneError(
        isSilent ? `did not answer for ${silenceMs / 1000} s` : `has closed the connection (${errno})`,
      );
    }
  }
}

/** Ends a connection that nothing is under way on. */
export function closeLane(socket: number): void {
  failureOf(() => send(socket, headerOf(commands.disconnect, 0n, 0, 0)));
  closeSync(socket);
}
