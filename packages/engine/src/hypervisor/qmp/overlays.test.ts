import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { HypervisorRefusedError } from "../../errors.ts";
import { removeUnused } from "./overlays.ts";

/** A qcow2 header (version 3) that states an L1 table of `entries` at 64 KiB, and that table with one entry set or none. */
function overlayOf(volume: string, entries: number, written: boolean): string {
  const file = Buffer.alloc(65_536 + 4_096);
  file.write("QFI\xfb", 0, "latin1");
  file.writeUInt32BE(3, 4);
  file.writeUInt32BE(entries, 36);
  file.writeBigUInt64BE(65_536n, 40);
  if (written) file.writeBigUInt64BE(1n << 63n, 65_536 + 8);
  const path = join(volume, "..", ".volume-1.overlay-operation");
  writeFileSync(path, file);
  return path;
}

function makeVolume(): string {
  const folder = mkdtempSync(join(tmpdir(), "tephra-overlays-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const volume = join(folder, "volume-1");
  writeFileSync(volume, "");
  return volume;
}

it("removes an overlay that nothing was written to", async () => {
  const volume = makeVolume();
  const overlay = overlayOf(volume, 16, false);
  await removeUnused(volume);
  expect(existsSync(overlay)).toBe(false);
});

it.each([
  { why: "holds writes", entries: 16, written: true },
  { why: "states a larger L1 table than QEMU opens", entries: 0xffff_ffff, written: false },
  { why: "states one entry more than QEMU opens", entries: 4 * 1024 * 1024 + 1, written: false },
])("keeps an overlay that $why, and refuses", async ({ entries, written }) => {
  const volume = makeVolume();
  const overlay = overlayOf(volume, entries, written);
  const before = process.memoryUsage().arrayBuffers;
  await expect(removeUnused(volume)).rejects.toThrow(HypervisorRefusedError);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 1024 * 1024);
  expect(existsSync(overlay)).toBe(true);
});
