import { type ExecFileException, execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { firstOf } from "../kit/long.ts";
import { openGolden } from "./golden-repository.ts";

const entry = join(import.meta.dirname, "../../apps/cli/dist/bundle/tephra-engine.js");

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-verbs-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

interface Run {
  status: number;
  stdout: Buffer;
  stderr: string;
}

function run(verb: string, args: readonly string[], input = ""): Promise<Run> {
  return new Promise((resolve) => {
    const options = { cwd: home, encoding: "buffer" as const, maxBuffer: 2 ** 28 };
    const all = [entry, verb, "--repository", "posix:repo", ...args];
    const child = execFile(process.execPath, all, options, (error: ExecFileException | null, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ status, stdout, stderr: stderr.toString() });
    });
    child.stdin?.end(input);
  });
}

const json = (bytes: Buffer | string) => JSON.parse(bytes.toString());

async function backup(...args: string[]) {
  const done = await run("backup", ["--source", "volume", "--json", ...args]);
  expect(done).toMatchObject({ status: 0 });
  return json(done.stdout).backup;
}

describe("tephra-engine", () => {
  test.each(firstOf(4, ["GZIP", "bz2", "zstd", "no", "zlib", "Bzip2", "none", "off"]))(
    "stores with --compression %s, whatever its case, and restores",
    async (codec) => {
      const image = Buffer.concat([Buffer.alloc(100_000, "text "), randomBytes(70_000)]);
      await writeFile(join(home, "volume"), image);
      const sizes = ["--object-bytes", "65536", "--block-bytes", "4096"];
      const made = await backup("--compression", codec, ...sizes);
      expect(made.compression).toBe(codec.toLowerCase());
      const metadata = json(await readFile(join(home, "repo", made.container, `${made.prefix}_metadata`)));
      const labels = metadata.objects.map((object: object) => Object.values(object)[0].compression);
      const off = ["none", "off", "no"].includes(codec);
      expect(labels).toEqual(off ? ["none", "none", "none"] : [codec.toLowerCase(), codec.toLowerCase(), "none"]);
      expect((await run("restore", ["--backup", made.id, "--target", "out"])).status).toBe(0);
      expect((await readFile(join(home, "out"))).equals(image)).toBe(true);
    },
  );

  test("restores a part at its own place, keeps the rest, and writes a pipe's bytes alone on stdout", async () => {
    const image = randomBytes(300_000);
    await writeFile(join(home, "volume"), image);
    const { id } = await backup("--object-bytes", "65536", "--block-bytes", "4096");
    const part = ["--offset", "70001", "--length", "100000"];
    const other = randomBytes(400_000);
    await writeFile(join(home, "larger"), other);
    expect((await run("restore", ["--backup", id, "--target", "larger", ...part])).status).toBe(0);
    image.copy(other, 70_001, 70_001, 170_001);
    expect((await readFile(join(home, "larger"))).equals(other)).toBe(true);
    const piped = await run("restore", ["--backup", id, "--target", "-", ...part, "--json"]);
    expect(piped.status).toBe(0);
    expect(piped.stdout.equals(image.subarray(70_001, 170_001))).toBe(true);
    expect(json(piped.stderr)).toMatchObject({ restore: { id, target: "-", bytes: 100_000, warnings: [] } });
    const rest = await run("restore", ["--backup", id, "--target", "-", "--offset", "299990"]);
    expect(rest.stdout.equals(image.subarray(299_990))).toBe(true);
    expect(
      (await run("restore", ["--backup", id, "--target", "-", "--offset", "1", "--length", "300000"])).status,
    ).toBe(1);
  });

  test("verifies, and ends with status 1 and the names of what is damaged", async () => {
    await writeFile(join(home, "volume"), randomBytes(100_000));
    const { id, container, prefix } = await backup("--object-bytes", "65536", "--block-bytes", "4096");
    const whole = await run("verify", ["--backup", id, "--json"]);
    expect(whole.status).toBe(0);
    expect(json(whole.stdout)).toEqual({ verify: { id, mode: "deep", objects: 2, blocks: 25, damaged: [] } });
    const file = join(home, "repo", container, `${prefix}-00001`);
    const bytes = await readFile(file);
    bytes[5] = (bytes[5] as number) ^ 1;
    await writeFile(file, bytes);
    expect((await run("verify", ["--backup", id, "--quick", "--json"])).status).toBe(0);
    const flipped = await run("verify", ["--backup", id, "--json"]);
    expect(flipped.status).toBe(1);
    expect(json(flipped.stdout).verify.damaged).toEqual([
      { object: `${prefix}-00001`, reason: "the MD5 does not match" },
    ]);
    await truncate(file, 0);
    const quick = await run("verify", ["--backup", id, "--quick", "--json"]);
    expect(quick.status).toBe(1);
    expect(json(quick.stdout).verify).toMatchObject({ mode: "quick", damaged: [{ object: `${prefix}-00001` }] });
  });

  test("warns when a list of hashes is missing and restores nevertheless", async () => {
    const image = randomBytes(100_000);
    await writeFile(join(home, "volume"), image);
    const { id, container, prefix } = await backup();
    await rm(join(home, "repo", container, `${prefix}_sha256file`));
    const restored = await run("restore", ["--backup", id, "--target", "out", "--json"]);
    expect(restored.status).toBe(0);
    expect(restored.stderr).toContain("Warning");
    expect(json(restored.stdout).restore.warnings).toHaveLength(1);
    expect((await readFile(join(home, "out"))).equals(image)).toBe(true);
  });

  test("imports a Cinder's records under another id, restores by it, exports and rescans", async () => {
    const golden = await openGolden("bz2", { copyTo: join(home, "repo") });
    const twin = "11111111-2222-3333-4444-555555555555";
    const theirs = json(Buffer.from(golden.backups[3]?.backup_url ?? "", "base64"));
    const url = Buffer.from(JSON.stringify({ ...theirs, id: twin })).toString("base64");
    const dry = await run("import", ["--record", "-", "--dry-run", "--json"], url);
    expect(json(dry.stdout).import).toMatchObject({ id: twin, kept: false, problem: null });
    expect((await run("restore", ["--backup", twin, "--target", "out"])).status).toBe(2);
    await writeFile(join(home, "record"), JSON.stringify({ backup_service: theirs.service, backup_url: url }));
    const imported = await run("import", ["--record", "record", "--json"]);
    expect(imported.status).toBe(0);
    expect(json(imported.stdout).import).toMatchObject({ id: twin, kept: true, chain: { length: 4 } });
    expect((await run("restore", ["--backup", twin, "--target", "out"])).status).toBe(0);
    expect(await readFile(join(home, "out"))).toEqual(await golden.image("inc3"));
    const rescanned = json((await run("rescan", ["--json"])).stdout).rescan;
    expect(rescanned.map(({ id }: { id: string }) => id)).toEqual(golden.backups.map(({ id }) => id));
    const exported = await run("export", ["--backup", golden.backups[1]?.id ?? "", "--json"]);
    expect(json(exported.stdout).export_record).toEqual(rescanned[1].export_record);
    const foreign = ["--record", "record", "--service", "cinder.backup.drivers.ceph.CephBackupDriver", "--json"];
    const refused = await run("import", foreign);
    expect(refused.status).toBe(1);
    expect(json(refused.stdout).error.code).toBe("invalid_record");
    const nonsense = await run("import", ["--record", "-", "--json"], "nonsense!");
    expect(json(nonsense.stdout).error.code).toBe("invalid_record");
    expect((await run("import", ["--record", "missing"])).status).toBe(2);
  });
});
