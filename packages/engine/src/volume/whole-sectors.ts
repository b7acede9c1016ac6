import type { VolumeSource } from "./volume.ts";

/** QEMU's granularity of lengths. */
const sectorBytes = 512;

export const wholeSectors = (sizeBytes: number): number => Math.ceil(sizeBytes / sectorBytes) * sectorBytes;

/** The bytes of a file as a volume has them: zeros up to a whole sector. */
export const inWholeSectors = (source: VolumeSource): Pick<VolumeSource, "sizeBytes" | "read"> => ({
  sizeBytes: wholeSectors(source.sizeBytes),
  async read(into, offset) {
    const length = Math.max(0, Math.min(into.length, source.sizeBytes - offset));
    into.fill(0, length);
    await source.read(into.subarray(0, length), offset);
  },
});
