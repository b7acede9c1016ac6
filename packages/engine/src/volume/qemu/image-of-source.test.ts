import fc from "fast-check";
import { expect, it } from "vitest";
import type { Extent } from "../../format/extents.ts";
import type { VolumeSource } from "../volume.ts";
import { imageOf } from "./image-of-source.ts";

const cluster = 65_536;

/** Every byte of its data tells where it is. */
const byteAt = (offset: number): number => 1 + (Math.floor(offset / 7) % 251);

function sourceOf(sizeBytes: number, extents: () => Iterable<Extent>): VolumeSource {
  return {
    sizeBytes,
    read: async (into, offset) => {
      if (offset + into.length > sizeBytes) throw new Error("read behind the end");
      into.fill(0);
      for (const extent of extents()) {
        const from = Math.max(extent.offset, offset);
        const end = Math.min(extent.offset + extent.length, offset + into.length);
        for (let at = from; at < end; at += 1) into[at - offset] = byteAt(at);
      }
    },
    dataExtents: async function* () {
      yield* extents();
    },
    fingerprint: async () => "",
    [Symbol.asyncDispose]: async () => {},
  };
}

/** Reads a byte of the disk as a reader of qcow2 does, by the tables. Null: the cluster is not there. */
async function guestByte(image: VolumeSource, offset: number): Promise<number | null> {
  const number = async (at: number): Promise<number> => {
    const bytes = Buffer.alloc(8);
    await image.read(bytes, at);
    return Number(bytes.readBigUInt64BE(0) & 0x00ff_ffff_ffff_fe00n);
  };
  const l1 = await number(40);
  const index = Math.floor(offset / cluster);
  const l2 = await number(l1 + Math.floor(index / 8192) * 8);
  if (l2 === 0) return null;
  const data = await number(l2 + (index % 8192) * 8);
  if (data === 0) return null;
  const byte = Buffer.alloc(1);
  await image.read(byte, data + (offset % cluster));
  return byte[0] ?? null;
}

it("a reader of qcow2 finds every byte, whatever the source has where", async () => {
  const extent = fc.record({ gap: fc.nat({ max: 300_000 }), length: fc.integer({ min: 1, max: 200_000 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(extent, { maxLength: 8 }), fc.integer({ min: 1, max: 4_000 }), async (parts, sectors) => {
      const sizeBytes = sectors * 512;
      const extents: Extent[] = [];
      let at = 0;
      for (const { gap, length } of parts) {
        const offset = at + gap;
        const end = Math.min(sizeBytes, offset + length);
        if (offset < end) extents.push({ offset, length: end - offset });
        at = offset + length + 1;
      }
      const image = await imageOf(sourceOf(sizeBytes, () => extents));
      expect(image.sizeBytes % cluster).toBe(0);
      const whole = Buffer.alloc(image.sizeBytes);
      await image.read(whole, 0);
      expect(whole.readBigUInt64BE(24)).toBe(BigInt(sizeBytes));
      for (const offset of [
        0,
        sizeBytes - 1,
        ...extents.flatMap((each) => [each.offset, each.offset + each.length - 1]),
      ]) {
        const isData = extents.some((each) => offset >= each.offset && offset < each.offset + each.length);
        expect((await guestByte(image, offset)) ?? 0).toBe(isData ? byteAt(offset) : 0);
      }
      // In parts, it is the same.
      const middle = Math.floor(image.sizeBytes / 2) + 13;
      const part = Buffer.alloc(image.sizeBytes - middle);
      await image.read(part, middle);
      expect(part.equals(whole.subarray(middle))).toBe(true);
    }),
    { numRuns: 60 },
  );
});

it("of a source with very many parts, some zeros are in the image, and it stays right", async () => {
  const parts = 600_000;
  const sizeBytes = parts * 2 * cluster;
  function* extents(): Generator<Extent> {
    for (let at = 0; at < parts; at += 1) yield { offset: at * 2 * cluster, length: 512 };
  }
  const source = sourceOf(sizeBytes, extents);
  const read: Extent[] = [];
  const image = await imageOf({
    ...source,
    read: async (into, offset) => {
      read.push({ offset, length: into.length });
      for (let at = 0; at < into.length; at += 1) {
        const within = (offset + at) % (2 * cluster);
        into[at] = within < 512 ? byteAt(offset + at) : 0;
      }
    },
  });
  expect(image.sizeBytes).toBeGreaterThan(sizeBytes);
  for (const at of [0, 1, 299_999, parts - 1]) {
    const offset = at * 2 * cluster;
    expect(await guestByte(image, offset + 100)).toBe(byteAt(offset + 100));
    expect((await guestByte(image, offset + cluster)) ?? 0).toBe(0);
  }
  expect(read.every(({ offset, length }) => offset + length <= sizeBytes)).toBe(true);
  const layouts = await Promise.all([
    imageOf(source),
    imageOf(sourceOf(sizeBytes, () => [{ offset: 0, length: 512 }])),
  ]);
  expect(layouts[0].layout).toBe(image.layout);
  expect(layouts[1].layout).not.toBe(image.layout);
});
