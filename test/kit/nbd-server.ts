import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";

/*
 * A server of NBD for tests that follows the protocol but where a script says otherwise: a real one cannot be made to lie.
 */

export const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 255]);
export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};

export interface NbdRequest {
  command: number;
  /** 8 bytes. */
  cookie: Buffer;
  length: number;
  offset: bigint;
  /** What is to be written, else empty. */
  data: Buffer;
  /** Whether the client has negotiated structured replies on this connection, as NbdClient does and a thread does not. */
  structured: boolean;
}

export interface NbdScript {
  greeting?: Buffer;
  sizeBytes?: bigint;
  /** Of the export; by default a flush is offered, and nothing else. */
  flags?: number;
  /** Every reply to GO; otherwise a regular one. */
  go?: Buffer[];
  /** Differently for the connections after the first. */
  further?: Pick<NbdScript, "greeting" | "sizeBytes" | "flags" | "go">;
  /** What is sent for a request. Null: the connection is closed. */
  reply?: (request: NbdRequest) => Buffer | null;
  /** After which of these it goes on with one byte every now and then. */
  trickles?: "greeting" | "reply";
}

export const optionReply = (option: number, type: number, data = Buffer.alloc(0)): Buffer =>
  Buffer.concat([u64(0x3e889045565a9n), u32(option), u32(type), u32(data.length), data]);
export const chunk = (cookie: Buffer, type: number, data: Buffer, flags = 1): Buffer =>
  Buffer.concat([u32(0x668e33ef), u16(flags), u16(type), cookie, u32(data.length), data]);
export const simpleReply = (cookie: Buffer, data: Buffer = Buffer.alloc(0), errno = 0): Buffer =>
  Buffer.concat([u32(0x67446698), u32(errno), cookie, data]);

const trickleMs = 500;
const sizeDefault = 8192n;
const flagsDefault = 5;

/** Listens on a socket in `folder`. */
export async function startNbdServer(
  folder: string,
  script: NbdScript,
): Promise<AsyncDisposable & { path: string; connections(): number }> {
  const path = join(folder, "socket");
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    const own = sockets.size > 0 ? { ...script, ...script.further } : script;
    sockets.add(socket);
    socket.on("error", () => {});
    void talk(socket, own).catch(() => socket.destroy());
  });
  server.listen(path);
  await once(server, "listening");
  return {
    path,
    connections: () => sockets.size,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

function trickle(socket: Socket): void {
  const timer = setInterval(() => socket.write(Buffer.alloc(1)), trickleMs);
  socket.on("close", () => clearInterval(timer));
}

async function talk(socket: Socket, script: NbdScript): Promise<void> {
  const chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  let rest = Buffer.alloc(0);
  const take = async (bytes: number): Promise<Buffer> => {
    while (rest.length < bytes) {
      const { done, value } = await chunks.next();
      if (done) throw new Error("closed");
      rest = Buffer.concat([rest, value]);
    }
    const taken = rest.subarray(0, bytes);
    rest = rest.subarray(bytes);
    return taken;
  };
  socket.write(script.greeting ?? Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT", "latin1"), u16(3)]));
  if (script.trickles === "greeting") return trickle(socket);
  await take(4);
  let structured = false;
  for (let option = 0; option !== 7; ) {
    const header = await take(16);
    option = header.readUInt32BE(8);
    await take(header.readUInt32BE(12));
    if (option === 8) structured = true;
    if (option === 10) socket.write(optionReply(10, 4, Buffer.concat([u32(5), Buffer.from("base:allocation")])));
    if (option === 7) {
      const [sizeBytes, flags] = [script.sizeBytes ?? sizeDefault, script.flags ?? flagsDefault];
      const regular = [optionReply(7, 3, Buffer.concat([u16(0), u64(sizeBytes), u16(flags)]))];
      for (const reply of script.go ?? regular) socket.write(reply);
      if (script.go) return;
    }
    socket.write(optionReply(option, 1));
  }
  for (;;) {
    const header = await take(28);
    const [command, length] = [header.readUInt16BE(6), header.readUInt32BE(24)];
    const request = { command, cookie: header.subarray(8, 16), offset: header.readBigUInt64BE(16), length, structured };
    const reply = script.reply?.({ ...request, data: command === 1 ? await take(length) : Buffer.alloc(0) });
    if (reply === null) return socket.destroySoon();
    if (reply !== undefined) socket.write(reply);
    if (script.trickles === "reply") return trickle(socket);
  }
}

/** What an honest server of this disk, all of it data, replies; writes change it. */
export function diskReply(disk: Buffer, { command, cookie, offset, length, data, structured }: NbdRequest): Buffer {
  const at = Number(offset);
  if (command === 7) return chunk(cookie, 5, Buffer.concat([u32(5), u32(length), u32(0)]));
  if (command === 1) data.copy(disk, at);
  if (command === 6) disk.fill(0, at, at + length);
  if (command !== 0) return simpleReply(cookie);
  const read = Buffer.from(disk.subarray(at, at + length));
  return structured ? chunk(cookie, 1, Buffer.concat([u64(at), read])) : simpleReply(cookie, read);
}
