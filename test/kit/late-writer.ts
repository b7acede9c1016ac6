// late-writer.ts SETTINGS VOLUME RESTORE: restores a volume by writing one byte everywhere, again and again, as a worker that does not know
// that it was given up. Prints "writing" each time that it begins anew.
import { openVolumeBackend, type VolumeBackendSettings } from "@tephra/engine";

const [settings = "", volumeId = "", restoreId = ""] = process.argv.slice(2);
const backend = await openVolumeBackend(JSON.parse(settings) as VolumeBackendSettings);
const { sizeBytes } = await backend.measure(volumeId);
await backend.beginRestore(volumeId, restoreId, { sizeBytes, keepTail: true });
await using target = await backend.openRestoreTarget(volumeId, restoreId);
const piece = Buffer.alloc(64 * 1024, 0xaa);
for (let count = 0; ; count++) {
  const offset = (count * piece.length) % sizeBytes;
  await target.write(piece, offset);
  if (offset === 0) process.stdout.write("writing\n");
}
