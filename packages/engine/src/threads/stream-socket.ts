import { isIPv4, isIPv6 } from "node:net";
import { openSystemLibrary } from "../codec/system-library.ts";
import type { NbdAddress } from "../volume/nbd/nbd-protocol.ts";

/*
 * Blocking sockets of Linux (socket(2), socket(7), unix(7), ip(7), ipv6(7)), which Node.js has not. Their descriptors
 * are read and written as those of files are.
 */

const families = { unix: 1, ipv4: 2, ipv6: 10 } as const;
/** SOCK_STREAM | SOCK_CLOEXEC: no child gets it. */
const streamType = 0x80001;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
/** With the zero at its end. */
const pathBytesMax = 108;

const prototypes = {
  socket: "int socket(int family, int type, int protocol)",
  connect: "int connect(int socket, uint64 address, uint32 bytes)",
  setsockopt: "int setsockopt(int socket, int level, int name, uint64 value, uint32 bytes)",
  close: "int close(int socket)",
  inet_pton: "int inet_pton(int family, uint64 text, uint64 address)",
};

const openLibc = () => openSystemLibrary("sockets in threads", "libc.so.6", prototypes);
type Libc = ReturnType<typeof openLibc>;

/** Loaded once per thread, for the first connection. */
const loaded: Libc[] = [];

function libc(): Libc {
  if (loaded.length === 0) loaded.push(openLibc());
  return loaded[0] as Libc;
}

/**
 * Connects, within the limit that also holds for every later call on the socket: it then fails with EAGAIN. A host is an IP address.
 *
 * @throws where this machine has no such calls, or nobody listens
 */
export function connectSocket(address: NbdAddress, limitMs: number): number {
  const { calls, address: addressOf } = libc();
  const { family, bytes } = "path" in address ? unixAddress(address.path) : ipAddress(address);
  const socket = calls.socket(family, streamType, 0);
  if (socket < 0) throw new Error("no socket can be made");
  try {
    limitSilence(socket, limitMs);
    if (family !== families.unix) setOption(socket, IPPROTO_TCP, TCP_NODELAY, Buffer.from(Int32Array.of(1).buffer));
    if (calls.connect(socket, addressOf(bytes), bytes.length) !== 0) throw new Error("nobody listens");
    return socket;
  } catch (error) {
    closeSocket(socket);
    throw error;
  }
}

/** Within a thread, where Node.js warns of a descriptor that it has not opened. */
export function closeSocket(socket: number): void {
  libc().calls.close(socket);
}

/** How long a call on the socket may wait without a byte passing. */
export function limitSilence(socket: number, limitMs: number): void {
  const timeval = Buffer.alloc(16);
  timeval.writeBigInt64LE(BigInt(Math.floor(limitMs / 1000)), 0);
  timeval.writeBigInt64LE(BigInt((limitMs % 1000) * 1000), 8);
  setOption(socket, SOL_SOCKET, SO_RCVTIMEO, timeval);
  setOption(socket, SOL_SOCKET, SO_SNDTIMEO, timeval);
}

function setOption(socket: number, level: number, name: number, value: Buffer): void {
  const { calls, address } = libc();
  if (calls.setsockopt(socket, level, name, address(value), value.length) !== 0) {
    throw new Error(`option ${name} of a socket cannot be set`);
  }
}

function unixAddress(path: string): { family: number; bytes: Buffer } {
  const name = Buffer.from(path, "utf8");
  if (name.length >= pathBytesMax || name.includes(0)) throw new Error("the path of the socket is too long");
  const bytes = Buffer.alloc(2 + pathBytesMax);
  bytes.writeUInt16LE(families.unix, 0);
  name.copy(bytes, 2);
  return { family: families.unix, bytes };
}

/** `struct sockaddr_in`: family, port, address; `sockaddr_in6` has 4 more bytes before the address. */
function ipAddress({ host, port }: { host: string; port: number }): { family: number; bytes: Buffer } {
  const { calls, address } = libc();
  const form = isIPv4(host)
    ? { family: families.ipv4, length: 16, at: 4 }
    : { family: families.ipv6, length: 28, at: 8 };
  if (form.family === families.ipv6 && !isIPv6(host)) throw new Error("not an IP address");
  const bytes = Buffer.alloc(form.length);
  bytes.writeUInt16LE(form.family, 0);
  bytes.writeUInt16BE(port, 2);
  const text = Buffer.from(`${host}\0`, "latin1");
  if (calls.inet_pton(form.family, address(text), address(bytes) + BigInt(form.at)) !== 1) {
    throw new Error("not an IP address");
  }
  return { family: form.family, bytes };
}
