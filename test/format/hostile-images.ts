import type { Random } from "../reliability/fuzz/random.ts";

/** A valid image, from which hostile ones are made. */
export interface SeedImage {
  format: "qcow2" | "vmdk" | "vhdx" | "vdi";
  bytes: Buffer;
}

/** Most of what decides how an image is read is within these. */
const headerBytes = 512;
const metadataBytes = 64 * 1024;

const numbers = [
  0n,
  1n,
  2n,
  511n,
  2n ** 16n,
  2n ** 31n - 1n,
  2n ** 32n - 1n,
  2n ** 40n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];

/** An image in which some fields, bytes or names are others than its program has written, some of them names of `lures`. */
export function hostileImage(seed: SeedImage, lures: readonly string[], random: Random): Buffer {
  let bytes: Buffer = Buffer.from(seed.bytes);
  for (let edits = 1 + random.below(4); edits > 0; edits--) {
    const at = random.below(Math.min(bytes.length, random.below(4) === 0 ? metadataBytes : headerBytes));
    const lure = lures[random.below(lures.length)] as string;
    switch (random.below(7)) {
      case 0:
        bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
        break;
      case 1:
        bytes[at] = random.below(256);
        break;
      case 2:
        writeNumber(bytes, at - (at % 4), random);
        break;
      case 3:
        if (random.below(3) === 0) bytes = bytes.subarray(0, at + 1);
        break;
      default:
        bytes = named(seed.format, bytes, lure, random);
    }
  }
  return bytes;
}

function writeNumber(bytes: Buffer, at: number, random: Random): void {
  const value = numbers[random.below(numbers.length)] as bigint;
  const number = Buffer.alloc(8);
  if (random.below(2) === 0) number.writeBigUInt64BE(value);
  else number.writeBigUInt64LE(value);
  const width = random.below(2) === 0 ? 4 : 8;
  number.copy(bytes, at, value < 2n ** 32n && width === 4 && number[7] !== 0 ? 4 : 0, 8);
}

/** The image with a name of another file where its format has one. */
function named(format: SeedImage["format"], bytes: Buffer, lure: string, random: Random): Buffer {
  if (format === "qcow2")
    return random.below(3) === 0 ? withDataFile(bytes, lure) : withBackingFile(bytes, lure, random);
  if (format === "vmdk") return withDescription(bytes, lure, random);
  const at = random.below(Math.max(1, bytes.length - lure.length * 2));
  Buffer.from(lure, random.below(2) === 0 ? "utf16le" : "utf8").copy(bytes, at);
  // A VHDX that has a parent says so in its metadata.
  const parameters = bytes.indexOf(Buffer.from("3767a1caf6fa5c4d9d00d1f2d4a7a7a9", "hex"));
  if (parameters > 0) bytes[parameters + 16] = 3;
  return bytes;
}

/** https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt */
function withBackingFile(bytes: Buffer, lure: string, random: Random): Buffer {
  if (bytes.length < 2048) return bytes;
  const at = 600 + random.below(400);
  bytes.write(lure, at, "utf8");
  bytes.writeBigUInt64BE(BigInt(at), 8);
  bytes.writeUInt32BE(Buffer.byteLength(lure), 16);
  return withExtension(bytes, 0xe2792aca, random.below(2) === 0 ? "raw" : "qcow2");
}

function withDataFile(bytes: Buffer, lure: string): Buffer {
  if (bytes.length < 2048) return bytes;
  bytes[79] = (bytes[79] as number) | 4;
  return withExtension(bytes, 0x44415441, lure);
}

function withExtension(bytes: Buffer, type: number, text: string): Buffer {
  const from = bytes.readUInt32BE(100) % 1024;
  bytes.writeUInt32BE(type, from);
  bytes.writeUInt32BE(text.length, from + 4);
  bytes.write(text, from + 8, "utf8");
  bytes.fill(0, from + 8 + text.length, from + 24 + text.length);
  return bytes;
}

function withDescription(bytes: Buffer, lure: string, random: Random): Buffer {
  const lines = [
    `RW 8192 FLAT "${lure}" 0`,
    `RW 8192 SPARSE "${lure}"`,
    `parentFileNameHint="${lure}"`,
    `parentCID=12345678\nparentFileNameHint="${lure}"`,
  ];
  const line = lines[random.below(lines.length)] as string;
  const description = `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n${line}\n`;
  if (random.below(3) === 0) return Buffer.from(description, "latin1");
  const at = bytes.indexOf("# Disk DescriptorFile");
  if (at < 0 || bytes.length < at + 1024) return bytes;
  bytes.fill(0, at, at + 1024);
  bytes.write(description, at, "latin1");
  return bytes;
}
