import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileReaders, FilesError, type ListedFile, openFileSource, type VolumeSource } from "@tephra/engine";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  installFileSystems,
  makeDisk,
  makeExt,
  makeFat,
  makeTree,
  makeXfs,
  manyNames,
  run,
  runWith,
  sha256,
  type TreeEntry,
  treeOf,
  whileMounted,
} from "../kit/file-system-images.ts";

const MiB = 1024 * 1024;
const readers = new FileReaders();

interface Tree {
  dir: string;
  entries: TreeEntry[];
}

let home: string;
/** With 10,000 names in a folder, and with 300. */
let large: Tree;
let small: Tree;

beforeAll(async () => {
  await installFileSystems();
  home = await mkdtemp(join(tmpdir(), "tephra-files-"));
  const made = async (name: string, names: number): Promise<Tree> => {
    const dir = join(home, name);
    await mkdir(dir);
    await makeTree(dir, names);
    return { dir, entries: await treeOf(dir) };
  };
  large = await made("large", manyNames);
  small = await made("small", 300);
}, 600_000);
afterAll(() => rm(home, { recursive: true, force: true }));

async function listAll(source: VolumeSource, path: string, partition: number | null = null): Promise<ListedFile[]> {
  const found: ListedFile[] = [];
  for (let after = 0; ; ) {
    const page = await readers.ask(source, { kind: "list", path, partition, after, limit: 1_000 });
    found.push(...page.files);
    if (page.next === null) return found;
    after = page.next;
  }
}

async function bytesOf(source: VolumeSource, path: string, partition: number | null = null): Promise<Buffer> {
  const file = await readers.open(source, { path, partition });
  const bytes = Buffer.alloc(file.sizeBytes, 1);
  for (let at = 0; at < bytes.length; at += MiB) await file.read(bytes.subarray(at, at + MiB), at);
  return bytes;
}

/** Every folder, every name, what is told of each, and the bytes of all files but most of the many alike. */
async function expectTree(
  path: string,
  entries: readonly TreeEntry[],
  { hasModes = true, skip = () => false }: { hasModes?: boolean; skip?: (path: string) => boolean } = {},
): Promise<void> {
  await using source = await openFileSource(path);
  const wanted = entries.filter((entry) => !skip(entry.path));
  for (const folder of ["", ...wanted.filter(({ type }) => type === "directory").map((entry) => entry.path)]) {
    const inside = wanted.filter((entry) => entry.path.slice(0, entry.path.lastIndexOf("/")) === folder);
    const listed = await listAll(source, folder === "" ? "/" : folder);
    const told = new Map(listed.filter(({ name }) => name !== "lost+found").map((file) => [file.name, file]));
    const names = inside.map((entry) => entry.path.slice(folder.length + 1));
    expect([...told.keys()].sort(), folder).toEqual(names.sort());
    for (const { path: each, type, size, mode, target } of inside) {
      const file = told.get(each.slice(folder.length + 1));
      expect(file, each).toMatchObject({ type, target, ...(size !== null && { size }) });
      if (hasModes && type !== "link") expect(file?.mode, each).toBe(mode);
    }
  }
  const hashed = wanted.filter((entry) => entry.sha256 !== null && !/many\/.*[1-9]-of/.test(entry.path));
  for (const entry of hashed.slice(0, 40)) {
    expect(sha256(await bytesOf(source, entry.path)), entry.path).toBe(entry.sha256);
  }
}

it.each([
  {
    name: "ext4 with small files in inodes",
    of: () => small,
    options: ["-t", "ext4", "-I", "512", "-O", "inline_data,metadata_csum"],
  },
  {
    name: "ext4 of small blocks, with groups of groups",
    of: () => small,
    options: ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,64bit"],
  },
  { name: "ext3", of: () => small, options: ["-t", "ext3"] },
  { name: "ext2 of small blocks, with a large folder", of: () => large, options: ["-t", "ext2", "-b", "1024"] },
])("reads all of $name", { timeout: 300_000 }, async ({ name, of, options }) => {
  const path = join(home, `${name}.img`);
  await makeExt(path, of().dir, "96M", "-N", "12000", ...options);
  await expectTree(path, of().entries);
});

it("reads all of ext4 with a large folder, which is listed in pages, and nothing twice", {
  timeout: 300_000,
}, async () => {
  const path = join(home, "large.img");
  await makeExt(path, large.dir, "96M", "-N", "12000", "-t", "ext4", "-L", "system");
  await expectTree(path, large.entries);
  await using source = await openFileSource(path);
  const names = (await listAll(source, "/many")).map(({ name }) => name);
  expect([names.length, new Set(names).size]).toEqual([manyNames, manyNames]);
  const { files } = await readers.ask(source, { kind: "list", path: "/etc", partition: 0, after: 0, limit: 100 });
  const hostname = files.find(({ name }) => name === "hostname");
  expect(hostname).toMatchObject({ modifiedAt: 1_000_000_000, uid: process.getuid?.(), gid: process.getgid?.() });
  expect(await readers.ask(source, { kind: "partitions" })).toMatchObject([
    { number: 0, start: 0, length: 96 * MiB, fileSystem: "ext4", label: "system", isUnclean: false, problem: null },
  ]);
  const hole = await readers.open(source, { path: "/sparse/hole", partition: null });
  const tail = Buffer.alloc(4096, 1);
  await hole.read(tail, hole.sizeBytes - 4096);
  expect([hole.sizeBytes, tail.every((byte) => byte === 0)]).toEqual([5 * 1024 * MiB, true]);
});

it.each([
  { name: "xfs with a large folder", of: () => large, options: [] },
  { name: "xfs of version 4", of: () => small, options: ["-m", "crc=0", "-i", "size=256", "-n", "ftype=0"] },
  { name: "xfs with large blocks of folders", of: () => small, options: ["-b", "size=1024", "-n", "size=8192"] },
])("reads all of $name", { timeout: 300_000 }, async ({ name, of, options }) => {
  const path = join(home, `${name}.img`);
  await makeXfs(path, of().dir, 320, ...options);
  await expectTree(path, of().entries, { skip: (each) => each === "/sparse/hole" || /\s/.test(each) });
});

it.for([
  { name: "blocks of 4 KiB", options: [] },
  { name: "blocks of 1 KiB", options: ["-b", "size=1024"] },
])(
  "reads what the kernel has made of xfs with $name: trees of extents, long links",
  {
    timeout: 120_000,
  },
  async ({ name, options }, context) => {
    const path = join(home, `mounted ${name}.img`);
    await run("truncate", "-s", "400M", path);
    await run("mkfs.xfs", "-q", "-f", ...options, path);
    const target = "/far".repeat(200);
    const isMounted = await whileMounted(path, async (dir) => {
      await run("cp", "--sparse=always", join(small.dir, "sparse/comb"), dir);
      await symlink(target, join(dir, "long"));
    });
    // Made by the program alone, no file has more than one extent.
    if (!isMounted) return context.skip("this machine mounts no xfs");
    await using source = await openFileSource(path);
    const map = await readers.ask(source, { kind: "extents", path: "/comb", partition: null, from: 0 });
    expect(map.extents.length).toBe(1_500);
    const comb = small.entries.find((entry) => entry.path === "/sparse/comb");
    expect(sha256(await bytesOf(source, "/comb"))).toBe(comb?.sha256);
    expect((await listAll(source, "/")).find(({ type }) => type === "link")).toMatchObject({ name: "long", target });
  },
);

it.each([
  { bits: 12, sizeMib: 4 },
  { bits: 16, sizeMib: 64 },
  { bits: 32, sizeMib: 64 },
] as const)("reads all of FAT with $bits bits", { timeout: 300_000 }, async ({ bits, sizeMib }) => {
  const path = join(home, `fat${bits}.img`);
  const dir = join(home, `fat${bits}`);
  await run("cp", "-r", "--sparse=always", small.dir, dir);
  // No links, nothing of 4 GiB; mtools takes no characters beyond the first 65,536.
  const lacks = (each: string): boolean =>
    /link|hole|\t|\u{1f30b}/u.test(each) || (bits === 12 && /^\/sparse\/|large$/.test(each));
  for (const { path: each } of small.entries) if (lacks(each)) await rm(join(dir, each));
  await makeFat(path, dir, sizeMib, bits);
  await expectTree(path, small.entries, { hasModes: false, skip: lacks });
  await using source = await openFileSource(path);
  expect((await bytesOf(source, "/ETC/HostName")).toString()).toBe("tephra\n");
});

/** A disk with an ext4 named `data`, a FAT, and a volume of LVM. */
async function partsOf(): Promise<{ ext: string; fat: string; lvm: string }> {
  const [ext, fat, lvm, dir] = ["ext.part", "fat.part", "lvm.part", "few"].map((name) => join(home, name)) as [
    string,
    string,
    string,
    string,
  ];
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, "where"), "here");
  await makeExt(ext, dir, "8M", "-t", "ext4", "-L", "data");
  await makeFat(fat, dir, 4, 12);
  const physical = Buffer.alloc(MiB);
  physical.write("LABELONE", 512);
  physical.write("LVM2 001", 536);
  await writeFile(lvm, physical);
  return { ext, fat, lvm };
}

it.each([
  {
    name: "GPT",
    table:
      "label: gpt\n1: start=2048, size=16384, name=boot\n2: start=20480, size=16384\n4: start=40960, size=8192, name=efi\n",
    numbers: [1, 2, 4],
  },
  {
    name: "MBR with logical partitions",
    table:
      "label: dos\n1: start=2048, size=16384, type=83\n2: start=18432, size=40960, type=5\n5: start=20480, size=16384, type=8e\n6: start=40960, size=8192, type=c\n",
    numbers: [1, 5, 6],
  },
])("tells the partitions of a disk with $name, and what each has", async ({ name, table, numbers }) => {
  const { ext, fat, lvm } = await partsOf();
  const path = join(home, `${name}.disk`);
  const parts = [
    { file: ext, atMib: 1 },
    { file: lvm, atMib: 10 },
    { file: fat, atMib: 20 },
  ];
  await makeDisk(path, table, { sizeMib: 32, parts });
  await using source = await openFileSource(path);
  const found = await readers.ask(source, { kind: "partitions" });
  expect(found).toMatchObject([
    { number: numbers[0], start: MiB, length: 8 * MiB, fileSystem: "ext4", label: "data", problem: null },
    { number: numbers[1], start: 10 * MiB, fileSystem: "lvm", problem: "lvm is not read" },
    { number: numbers[2], start: 20 * MiB, length: 4 * MiB, fileSystem: "vfat", label: "VOLCANO", problem: null },
  ]);
  for (const partition of [numbers[0], numbers[2]] as number[])
    expect((await bytesOf(source, "/where", partition)).toString()).toBe("here");
  const list = (partition: number | null) =>
    readers.ask(source, { kind: "list", path: "/", partition, after: 0, limit: 10 });
  await expect(list(null)).rejects.toMatchObject({
    kind: "unfit",
    message: /Several partitions .* \(ext4\), .* \(vfat\)/,
  });
  await expect(list(numbers[1] as number)).rejects.toMatchObject({ kind: "unfit", message: /lvm is not read/ });
  await expect(list(77)).rejects.toMatchObject({ kind: "missing" });
});

it("says why there is nothing to read", async () => {
  const path = join(home, "zeros");
  await writeFile(path, Buffer.alloc(MiB));
  await using source = await openFileSource(path);
  const asked = { kind: "list", path: "/", partition: null, after: 0, limit: 10 } as const;
  await expect(readers.ask(source, asked)).rejects.toMatchObject({
    kind: "unfit",
    message: /no file system that can be read/,
  });
  await writeFile(path, Buffer.alloc(100));
  await using short = await openFileSource(path);
  await expect(readers.ask(short, asked)).rejects.toBeInstanceOf(FilesError);
});

it("a block in the journal counts instead of that in its place, unless it was revoked", async () => {
  const path = join(home, "journal.img");
  await makeExt(path, small.dir, "32M", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum");
  const [block = ""] = (await run("debugfs", "-R", "blocks /etc", path)).trim().split(/\s+/);
  const bytes = (await readFile(path)).subarray(Number(block) * 1024, (Number(block) + 1) * 1024);
  bytes.write("HOSTNAME", bytes.indexOf("hostname"));
  await writeFile(join(home, "block"), bytes);
  const names = async (): Promise<string[]> => {
    await using source = await openFileSource(path);
    return (await listAll(source, "/etc")).map(({ name }) => name).sort();
  };
  const write = (...commands: string[]): Promise<string> =>
    runWith(`${["jo", ...commands, "jc"].join("\n")}\n`, "debugfs", "-w", "-f", "-", path);
  expect(await names()).toEqual(["hostname", "large", "nothing", "ssh"]);
  await write(`jw -b ${block} ${join(home, "block")}`);
  expect(await names()).toEqual(["HOSTNAME", "large", "nothing", "ssh"]);
  await using source = await openFileSource(path);
  expect(await readers.ask(source, { kind: "partitions" })).toMatchObject([{ isUnclean: true, problem: null }]);
  await write(`jw -r ${block}`);
  expect(await names()).toEqual(["hostname", "large", "nothing", "ssh"]);
});

it("reads ext4 as it is while it is used", { timeout: 120_000 }, async (context) => {
  const path = join(home, "used.img");
  await makeExt(path, null, "128M", "-t", "ext4");
  const isMounted = await whileMounted(path, async (dir) => {
    await mkdir(join(dir, "old"));
    await writeFile(join(dir, "old/removed"), "gone");
    await run("sync", "-f", dir);
    await mkdir(join(dir, "new/deep"), { recursive: true });
    await rm(join(dir, "old/removed"));
    for (let each = 0; each < 200; each++) await writeFile(join(dir, "new/deep", `file-${each}`), `new ${each}`);
    await run("sync", ...Array.from({ length: 200 }, (_, each) => join(dir, "new/deep", `file-${each}`)));
    await run("cp", "--sparse=always", path, `${path}.copy`);
  });
  if (!isMounted) return context.skip("this machine mounts no ext4");
  await using source = await openFileSource(`${path}.copy`);
  expect(await readers.ask(source, { kind: "partitions" })).toMatchObject([{ isUnclean: true }]);
  expect(await listAll(source, "/old")).toEqual([]);
  expect(await listAll(source, "/new/deep")).toHaveLength(200);
  expect((await bytesOf(source, "/new/deep/file-123")).toString()).toBe("new 123");
});

it("no path leads out of the disk, or through a link", async () => {
  const path = join(home, "paths.img");
  await makeExt(path, small.dir, "32M", "-t", "ext4");
  await using source = await openFileSource(path);
  const refusal = async (asked: string): Promise<string> =>
    readers.open(source, { path: asked, partition: null }).then(
      () => "opened",
      ({ kind, message }: FilesError) => `${kind}: ${message}`,
    );
  expect(await refusal("/etc/../etc/hostname")).toBe("invalid: path: must not have .. in it.");
  expect(await refusal("/etc/host\0name")).toBe("invalid: path: has a NUL.");
  expect(await refusal(`/${"a/".repeat(3000)}`)).toMatch(/^invalid: path: has more than/);
  expect(await refusal("/link-to-folder/hostname")).toMatch(
    /^unfit: .*it is a link to \/etc, and links are not followed/,
  );
  expect(await refusal("/names/short-link")).toBe("unfit: /names/short-link is not a file: its type is link.");
  expect(await refusal("/etc")).toBe("unfit: /etc is not a file: its type is directory.");
  expect(await refusal("/etc/hostname/x")).toBe("unfit: /etc/hostname is not a directory: its type is file.");
  expect(await refusal("/etc/nobody")).toBe("missing: There is no /etc/nobody.");
  expect(await refusal("//etc/./hostname")).toBe("opened");
});
