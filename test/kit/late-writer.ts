// device-writer.ts RECORDS ROOT VOLUME RESTORE: writes a volume in place, again and again, as a worker that does not know that it was given
// up. Prints "writing" once it has begun.
import { openVolumeBackend } from "@tephra/engine";

const [path = "", root = "", volumeId = "", restoreId = ""] = process.argv.slice(2);
const backend = await openVolumeBackend({ driver: "device", path, roots: [root] });
const { sizeBytes } = await backend.measure(volumeId);
await backend.beginRestore(volumeId, restoreId, { sizeBytes, keepTail: true });
await using target = await backend.openRestoreTarget(volumeId, restoreId);
const piece = Buffer.alloc(64 * 1024, 0xaa);
for (let count = 0; ; count++) {
  await target.write(piece, (count * piece.length) % sizeBytes);
  if (count === 0) process.stdout.write("writing\n");
}
