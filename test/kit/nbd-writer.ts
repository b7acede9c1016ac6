/*
 * A program for tests: connects to the exports of an NBD server and writes one counter to each of them in turn, without pause, until
 * SIGTERM; then it prints the last value. Each write is acknowledged before the next one is sent, so at every moment the counters are
 * non-increasing in export order and differ by at most one.
 *
 *   node nbd-writer.ts SOCKET EXPORT…       prints "writing", at the end {"counter":N}
 */
import { NbdClient } from "../../packages/engine/src/volume/nbd/nbd-client.ts";

const blockBytes = 4096;
/** The counter is written to the start of the disk and to one of this many later offsets, so that a disk has more than one cluster. */
const places = 64;
const placeBytes = 64 * 1024;

const [path = "", ...names] = process.argv.slice(2);
const disks: NbdClient[] = [];
for (const name of names) disks.push(await NbdClient.open({ path }, name, name));

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
