import { VolumeStorageError, VolumeStorageFullError } from "../../errors.ts";

/* What the clients share of the NBD protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). */

/** A unix socket by its path, or a host and a port. */
export type NbdAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** An export that takes several connections, each of which sees what the others have written and flushed: threads may open their own. */
export interface NbdExport {
  /** Of the server that the first connection is to; a host is an IP address. */
  readonly address: NbdAddress;
  readonly name: string;
  readonly sizeBytes: number;
  /** Whether zeros need not be sent to it. */
  readonly writesZeroes: boolean;
  /** What the server is called in messages. */
  readonly shown: string;
}

/** A server that has sent nothing for this long while something is due is given up. */
export const silenceMs = 60_000;
/** So is one that has completed no reply for this long, though it sends a little now and then. */
export const slowestMs = 600_000;
/** Bytes of an option reply, and of an error's text. */
export const textBytesMax = 64 * 1024;
/** Longest export with exact offsets. */
export const sizeMax = BigInt(Number.MAX_SAFE_INTEGER);

export const greetingMagic = "NBDMAGICIHAVEOPT";
export const optionMagic = Buffer.from("IHAVEOPT", "latin1");
export const optionReplyMagic = 0x3e889045565a9n;
export const options = { go: 7, structuredReply: 8, setMetaContext: 10 } as const;
export const replyTypes = { ack: 1, info: 3, metaContext: 4 } as const;
/** The kind of information that has an export's length and flags. */
export const infoExport = 0;
export const commands = { read: 0, write: 1, disconnect: 2, flush: 3, writeZeroes: 6, blockStatus: 7 } as const;
export const transmissionFlags = { readOnly: 2, flush: 4, writeZeroes: 64, multiConn: 256 } as const;
export const simpleReplyMagic = 0x67446698;
const requestMagic = 0x25609513;

const errnoNames: Readonly<Record<number, string>> = {
  1: "EPERM",
  5: "EIO",
  12: "ENOMEM",
  22: "EINVAL",
  28: "ENOSPC",
  75: "EOVERFLOW",
  95: "ENOTSUP",
  108: "ESHUTDOWN",
};
/** Errors that may pass. */
const passing: readonly number[] = [5, 12, 108];

/** What a server's refusal of a request means; `text`: its own words, if any. */
export function requestError(shown: string, errno: number, text: string): Error {
  const name = errnoNames[errno] ?? String(errno);
  const why = text === "" ? name : `${text} (${name})`;
  if (errno === 28) return new VolumeStorageFullError(`No space left in ${shown}: ${why}.`);
  return new VolumeStorageError(`${shown} refused a request: ${why}.`, { retryable: passing.includes(errno) });
}

export function headerOf(command: number, cookie: bigint, offset: number, length: number): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(requestMagic, 0);
  header.writeUInt16BE(command, 6);
  header.writeBigUInt64BE(cookie, 8);
  header.writeBigUInt64BE(BigInt(offset), 16);
  header.writeUInt32BE(length, 24);
  return header;
}

export function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

const zeros = Buffer.alloc(1024 * 1024);

/** Whether these bytes, at most 1 MiB, are all zero; ends at the first that is not. */
export const areZero = (bytes: Uint8Array): boolean => zeros.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;

/** A text with its length before it. */
export function sized(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([uint32(bytes.length), bytes]);
}

/** A server's own words, without what a terminal would obey. */
export const printable = (text: Buffer): string =>
  text
    .toString("utf8")
    .replaceAll(/[^\x20-\x7e]/g, "?")
    .slice(0, 300);
