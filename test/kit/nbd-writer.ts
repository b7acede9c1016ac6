/*
 * A program for tests: connects to the exports of an NBD server and writes one counter to each of them in turn, without pause, until
 * SIGTERM; then it prints the last value. Each write is acknowledged before the next one is sent, so at every moment the counters are
 * non-increasing in export order and differ by at most one.
 *
 *   node nbd-writer.ts SOCKET EXPORT…       prints "writing", at the end {"counter":N}
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

const blockBytes = 4096;
/** The counter is written to the start of the disk and to one of this many later offsets, so that a disk has more than one cluster. */
const places = 64;
const placeBytes = 64 * 1024;

/** Reads exactly the requested number of bytes. */
class Reader {
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#chunks = socket[Symbol.asyncIterator]();
  }

  async take(bytes: number): Promise<Buffer> {
    while (this.#rest.length < bytes) {
      const { done, value } = await this.#chunks.next();
      if (done) throw new Error("the server has closed the connection");
      this.#rest = Buffer.concat([this.#rest, value]);
    }
    const taken = this.#rest.subarray(0, bytes);
    this.#rest = this.#rest.subarray(bytes);
    return taken;
  }
}

/** One export, by the fixed newstyle handshake with NBD_OPT_EXPORT_NAME and simple replies. */
class NbdDisk {
  readonly #socket: Socket;
  readonly #reader: Reader;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#reader = new Reader(socket);
  }

  async attach(name: string): Promise<void> {
    const greeting = await this.#reader.take(18);
    if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw new Error("no NBD server");
    const flags = greeting.readUInt16BE(16);
    const request = Buffer.alloc(20);
    request.writeUInt32BE(flags & 3, 0);
    request.write("IHAVEOPT", 4, "latin1");
    request.writeUInt32BE(1, 12);
    request.writeUInt32BE(Buffer.byteLength(name), 16);
    this.#socket.write(Buffer.concat([request, Buffer.from(name)]));
    await this.#reader.take(8 + 2 + ((flags & 2) === 0 ? 124 : 0));
  }

  async write(data: Buffer, offset: number): Promise<void> {
    const request = Buffer.alloc(28);
    request.writeUInt32BE(0x25609513, 0);
    request.writeUInt16BE(1, 6);
    request.writeBigUInt64BE(BigInt(offset), 16);
    request.writeUInt32BE(data.length, 24);
    this.#socket.write(Buffer.concat([request, data]));
    const reply = await this.#reader.take(16);
    if (reply.readUInt32BE(0) !== 0x67446698) throw new Error("no simple reply");
    if (reply.readUInt32BE(4) !== 0) throw new Error(`the server answers with error ${reply.readUInt32BE(4)}`);
  }
}

const [path = "", ...names] = process.argv.slice(2);
const disks: NbdDisk[] = [];
for (const name of names) {
  const socket = connect({ path });
  await once(socket, "connect");
  const disk = new NbdDisk(socket);
  await disk.attach(name);
  disks.push(disk);
}

let ended = false;
process.on("SIGTERM", () => {
  ended = true;
});
let counter = 0;
while (!ended) {
  counter += 1;
  const block = Buffer.alloc(blockBytes);
  block.writeBigUInt64BE(BigInt(counter));
  for (const disk of disks) {
    await disk.write(block, 0);
    await disk.write(block, (1 + (counter % places)) * placeBytes);
  }
  if (counter === 1) process.stdout.write("writing\n");
}
process.stdout.write(`${JSON.stringify({ counter })}\n`);
process.exit(0);
