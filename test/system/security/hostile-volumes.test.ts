import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

/** The header of an image of QEMU that says that the rest of its bytes is in `backing`. */
function qcow2(backing: string): Buffer {
  const header = Buffer.alloc(64 * 1024);
  header.write("QFI\xfb", 0, "latin1");
  header.writeUInt32BE(2, 4);
  header.writeBigUInt64BE(0x1000n, 8);
  header.writeUInt32BE(Buffer.byteLength(backing), 16);
  header.writeUInt32BE(16, 20);
  header.writeBigUInt64BE(BigInt(64 * MiB), 24);
  header.write(backing, 0x1000);
  return header;
}

/** The descriptor of an image of VMware whose extent is a file of the host. */
const vmdk = (extent: string): Buffer =>
  Buffer.from(`# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 131072 FLAT "${extent}" 0\n`);

it("a volume that claims to be an image with a file of the host behind it is bytes and nothing else", async () => {
  // Compressed it would not be found again.
  await using house = await startInstance({ repository: { compression: "none" } });
  const user = journeyOn(house);
  const secret = randomBytes(64).toString("hex");
  const file = join(house.dataDir, "file-of-the-host");
  writeFileSync(file, secret.repeat(1000));
  for (const [name, header] of Object.entries({ qcow2: qcow2(file), vmdk: vmdk(file) })) {
    const image = join(house.dataDir, `${name}.img`);
    await writeIslands(image, 2 * MiB + 77, [{ offset: 0, data: header }]);
    const sha256 = await sha256Of(image);
    const volume = await user.importVolume(image);
    expect(await sha256Of(user.volumeFile(volume))).toBe(sha256);
    await user.expectExact(await user.backUp(volume), sha256);
  }
  const stored = readdirSync(house.repositoryDir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => readFileSync(join(entry.parentPath, entry.name), "latin1"));
  expect(stored.some((bytes) => bytes.includes(file))).toBe(true);
  expect(stored.some((bytes) => bytes.includes(secret))).toBe(false);
});
