import { type ExecFileException, execFile, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import {
  appendFile,
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { openEngine, openRepository } from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { attachLoopDevice } from "../kit/loop-device.ts";
import { backUp, writeKeyFile } from "./backup-fixture.ts";
import { openGolden } from "./golden-repository.ts";

const entry = join(import.meta.dirname, "../../apps/cli/dist/bundle/tephra-engine.js");

interface Run {
  status: number;
  stdout: string;
  stderr: string;
}

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-engine-cli-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

function run(...args: string[]): Promise<Run> {
  return new Promise((resolve) => {
    execFile(process.execPath, [entry, ...args], { cwd: home }, (error: ExecFileException | null, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ status, stdout, stderr });
    });
  });
}

/** Runs a script of the shell as root of a mount namespace of its own, with the command line as its arguments. */
function runInNamespace(script: string, ...args: string[]): Promise<Run> {
  return new Promise((resolve) => {
    const command = ["-Urm", "sh", "-ec", script, "sh", process.execPath, entry, ...args];
    execFile("unshare", command, { cwd: home }, (error: ExecFileException | null, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ status, stdout, stderr });
    });
  });
}

const backupResult = z.strictObject({
  backup: z.strictObject({
    id: z.uuid(),
    volume_id: z.uuid(),
    parent_id: z.uuid().nullable(),
    container: z.string(),
    prefix: z.string(),
    compression: z.string(),
    object_bytes: z.int(),
    block_bytes: z.int(),
    volume_bytes: z.int(),
    encrypted: z.boolean(),
    objects: z.int(),
    stored_bytes: z.int(),
    seconds: z.number(),
    export_record: z.strictObject({ backup_service: z.string(), backup_url: z.base64() }),
  }),
});

const errorResult = z.strictObject({ error: z.strictObject({ code: z.string(), message: z.string() }) });
const listResult = z.object({ backups: z.array(z.looseObject({ id: z.string(), problem: z.string().nullable() })) });

async function backup(...args: string[]): Promise<z.infer<typeof backupResult>["backup"]> {
  const done = await run("backup", "--repository", "posix:repo", "--source", "volume", "--json", ...args);
  expect(done).toMatchObject({ status: 0 });
  return backupResult.parse(JSON.parse(done.stdout)).backup;
}

describe("tephra-engine", () => {
  test("backs up, lists and restores a chain from the repository alone", async () => {
    const image = Buffer.concat([randomBytes(200_000), Buffer.alloc(300_001)]);
    await writeFile(join(home, "volume"), image);
    const volumeId = randomUUID();
    const sizes = ["--object-bytes", "131072", "--block-bytes", "4096"];
    const full = await backup("--volume-id", volumeId, ...sizes);
    expect(full).toMatchObject({ volume_id: volumeId, parent_id: null, compression: "zlib", objects: 4 });
    expect(full).toMatchObject({ object_bytes: 131072, block_bytes: 4096, volume_bytes: image.length });
    expect(await readdir(join(home, "repo", full.container))).toHaveLength(6);
    const changed = Buffer.from(image);
    changed.write("changed", 250_000);
    await writeFile(join(home, "volume"), changed);
    const incremental = await backup("--parent", full.id, "--compression", "none", ...sizes);
    expect(incremental).toMatchObject({ volume_id: volumeId, parent_id: full.id, objects: 1, stored_bytes: 4096 });
    const listed = listResult.parse(JSON.parse((await run("list", "--repository", "posix:repo", "--json")).stdout));
    expect(listed.backups.map(({ id, problem }) => ({ id, problem }))).toEqual(
      expect.arrayContaining([full, incremental].map(({ id }) => ({ id, problem: null }))),
    );
    await writeFile(join(home, "existing"), randomBytes(900_000));
    for (const [id, target, bytes] of [
      [full.id, "new", image],
      [incremental.id, "existing", changed],
    ] as const) {
      const args = ["--repository", "posix:repo", "--backup", id, "--target", target, "--json"];
      const restored = JSON.parse((await run("restore", ...args)).stdout);
      expect(restored).toEqual({
        restore: { id, target, bytes: bytes.length, seconds: expect.any(Number), warnings: [] },
      });
      expect((await readFile(join(home, target))).equals(bytes)).toBe(true);
    }
  });

  test("prints an export record with every key of Cinder's", async () => {
    await writeFile(join(home, "volume"), "abc");
    const { export_record: record, ...made } = await backup();
    expect(record.backup_service).toBe("cinder.backup.drivers.posix.PosixBackupDriver");
    const decoded = JSON.parse(Buffer.from(record.backup_url, "base64").toString("utf8"));
    const golden = await openGolden("zlib");
    const theirs = JSON.parse(Buffer.from(golden.backups[0]?.backup_url ?? "", "base64").toString("utf8"));
    expect(Object.keys(decoded)).toEqual(Object.keys(theirs));
    expect(decoded).toMatchObject({ id: made.id, volume_id: made.volume_id, service_metadata: made.prefix, size: 1 });
    expect(decoded).toMatchObject({ container: made.container, user_id: null, project_id: null, object_count: 1 });
    expect(decoded.created_at).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  });

  test("reads a repository of a real Cinder and continues its chain", async () => {
    const golden = await openGolden("zlib", { copyTo: join(home, "repo") });
    const inc3 = golden.backups[3]?.id as string;
    const bytes = await golden.image("inc3");
    const restored = await run("restore", "--repository", "posix:repo", "--backup", inc3, "--target", "out");
    expect(restored).toMatchObject({ status: 0, stderr: "" });
    expect((await readFile(join(home, "out"))).equals(bytes)).toBe(true);
    bytes.write("one more change", 100_000);
    await writeFile(join(home, "volume"), bytes);
    const ours = await backup("--parent", inc3, "--block-bytes", "4096", "--object-bytes", "65536");
    expect(ours).toMatchObject({ parent_id: inc3, objects: 1 });
    await run("restore", "--repository", "posix:repo", "--backup", ours.id, "--target", "out2");
    expect((await readFile(join(home, "out2"))).equals(bytes)).toBe(true);
  });

  test("marks a new repository with a note, and refuses a folder that holds something else", async () => {
    await writeFile(join(home, "volume"), "abc");
    const first = await run("backup", "--repository", "posix:repo", "--source", "volume");
    expect(first.status).toBe(0);
    expect(first.stderr).toContain("new repository");
    expect((await run("backup", "--repository", "posix:repo", "--source", "volume")).stderr).toBe("");
    await mkdir(join(home, "photos"));
    await writeFile(join(home, "photos/cat.jpg"), "x");
    const refused = await run("backup", "--repository", "posix:photos", "--source", "volume", "--json");
    expect(refused.status).toBe(1);
    expect(errorResult.parse(JSON.parse(refused.stdout)).error.code).toBe("repository_unmarked");
    expect(await readdir(join(home, "photos"))).toEqual(["cat.jpg"]);
    expect((await run("init", "--repository", "posix:photos")).status).toBe(0);
    expect((await run("backup", "--repository", "posix:photos", "--source", "volume")).status).toBe(0);
  });

  test("a damaged backup ends with status 1, names the object, and leaves no target", async () => {
    await writeFile(join(home, "volume"), randomBytes(10_000));
    const made = await backup();
    await appendFile(join(home, "repo", made.container, `${made.prefix}-00001`), "x");
    const args = ["--repository", "posix:repo", "--backup", made.id, "--target", "out", "--json"];
    const restored = await run("restore", ...args);
    expect(restored.status).toBe(1);
    const { error } = errorResult.parse(JSON.parse(restored.stdout));
    expect(error).toMatchObject({ code: "damaged_object", message: expect.stringContaining(`${made.prefix}-00001`) });
    expect(restored.stderr).toContain(error.message);
    expect((await readdir(home)).sort()).toEqual(["repo", "volume"]);
  });

  test("an incremental of another block size, or of a volume that grew, is refused in Cinder's words", async () => {
    await writeFile(join(home, "volume"), randomBytes(10_000));
    const made = await backup("--block-bytes", "4096", "--object-bytes", "8192");
    const again = ["backup", "--repository", "posix:repo", "--source", "volume", "--parent", made.id];
    const other = await run(...again, "--block-bytes", "8192", "--object-bytes", "8192");
    expect(other.status).toBe(1);
    expect(other.stderr).toContain(
      "Invalid backup: Hash block size has changed since the last backup. " +
        "New hash block size: 8192. Old hash block size: 4096. Do a full backup.",
    );
    await truncate(join(home, "volume"), 20_000);
    const grown = await run(...again, "--block-bytes", "4096", "--object-bytes", "8192");
    expect(grown.status).toBe(1);
    expect(grown.stderr).toContain("Invalid backup: Volume size increased since the last backup. Do a full backup.");
    expect((await stat(join(home, "repo"))).isDirectory()).toBe(true);
  });

  test("encrypts with a key file or a key command, and says which key is missing", async () => {
    const image = randomBytes(200_000);
    await writeFile(join(home, "volume"), image);
    const keyFile = await writeKeyFile(home, ["1"]);
    const made = await backup("--key-file", keyFile);
    expect(made.encrypted).toBe(true);
    const repository = ["--repository", "posix:repo"];
    const listed = await run("list", ...repository, "--json");
    expect(listed.status).toBe(0);
    expect(listResult.parse(JSON.parse(listed.stdout)).backups).toMatchObject([
      { id: made.id, volume_bytes: 200_000, problem: expect.stringContaining("is encrypted") },
    ]);
    const restore = ["restore", ...repository, "--backup", made.id, "--target", "out"];
    for (const given of [[], ["--key-file", await writeKeyFile(home, ["2"])]]) {
      const refused = await run(...restore, ...given, "--json");
      expect(refused.status).toBe(1);
      expect(errorResult.parse(JSON.parse(refused.stdout)).error.code).toBe("encryption_key_missing");
    }
    expect(await readdir(home)).not.toContain("out");
    expect(await run(...restore, "--key-command", "cat", keyFile)).toMatchObject({ status: 0, stderr: "" });
    expect((await readFile(join(home, "out"))).equals(image)).toBe(true);
    const verified = await run("verify", ...repository, "--backup", made.id, "--key-file", keyFile);
    expect(verified).toMatchObject({ status: 0 });
    await chmod(keyFile, 0o644);
    const open = await run(...restore, "--key-file", keyFile);
    expect(open).toMatchObject({ status: 2, stderr: expect.stringContaining("chmod 600") });
  });

  test("a rewrap that is killed is ended by the next one", async () => {
    await writeFile(join(home, "volume"), randomBytes(1000));
    const [old, both] = [await writeKeyFile(home, ["1"]), await writeKeyFile(home, ["1", "2"])];
    await using engine = openEngine({ threads: 1 });
    const url = `posix:${join(home, "repo")}`;
    await using repository = await openRepository(url, { encryption: { keyFile: old } });
    await repository.initialize();
    const layout = { encrypted: true };
    for (let index = 0; index < 60; index++) await backUp(engine, { repository, path: join(home, "volume"), layout });
    const keys = async (version: number): Promise<number> =>
      (await readdir(join(home, "repo"), { recursive: true })).filter((name) => name.endsWith(`_key_${version}`))
        .length;
    const args = ["rewrap", "--all", "--repository", "posix:repo", "--key-file", both];
    const child = spawn(process.execPath, [entry, ...args], { cwd: home, stdio: "ignore" });
    const ended = once(child, "exit");
    while ((await keys(2)) === 0 && child.exitCode === null) await setImmediate();
    child.kill("SIGKILL");
    expect(await ended).toEqual([null, "SIGKILL"]);
    expect(await keys(1)).toBeGreaterThan(0);
    const rest = JSON.parse((await run(...args, "--json")).stdout).rewrap;
    expect(rest).toMatchObject({ failed: [] });
    expect(rest.rewrapped.length + rest.current).toBe(60);
    expect([await keys(1), await keys(2)]).toEqual([0, 60]);
    const [first] = listResult.parse(
      JSON.parse(
        (await run("list", "--repository", "posix:repo", "--key-file", await writeKeyFile(home, ["2"]), "--json"))
          .stdout,
      ),
    ).backups;
    expect(first?.problem).toBeNull();
  });

  test("an interrupted backup ends with status 1 and leaves no object behind", async () => {
    await writeFile(join(home, "volume"), randomBytes(100 * 1024 * 1024));
    await run("init", "--repository", "posix:repo");
    const args = ["backup", "--repository", "posix:repo", "--source", "volume", "--object-bytes", "1048576"];
    const child = spawn(process.execPath, [entry, ...args], { cwd: home, stdio: "ignore" });
    const ended = once(child, "exit");
    const objects = async (): Promise<string[]> =>
      (await readdir(join(home, "repo"), { recursive: true })).filter((name) => /backup_.*-\d{5}$/.test(name));
    while ((await objects()).length === 0 && child.exitCode === null) await setImmediate();
    child.kill("SIGINT");
    expect(await ended).toEqual([1, null]);
    expect(await objects()).toEqual([]);
  });

  test("everything that only reads works where nothing can be written: on a read-only mount, and without the right to write", async () => {
    const image = randomBytes(300_000);
    await writeFile(join(home, "volume"), image);
    const { id } = await backup("--object-bytes", "131072", "--block-bytes", "4096");
    const verbs = [["list"], ["rescan"], ["verify", "--backup", id], ["export", "--backup", id]];
    const readOnly = {
      mount: 'mount --bind repo repo && mount -o remount,bind,ro repo && exec "$@"',
      // Root of a namespace that nobody else is in may do what its user may; this one gives up the capability to write anywhere, too.
      rights: 'chmod -R a-w repo && exec setpriv --bounding-set -all --inh-caps -all "$@"',
    };
    for (const [name, script] of Object.entries(readOnly)) {
      const out = `out-${name}`;
      for (const verb of [...verbs, ["restore", "--backup", id, "--target", out]]) {
        const done = await runInNamespace(script, ...verb, "--repository", "posix:repo");
        expect(done, `${name}: ${verb[0]}`).toMatchObject({ status: 0, stderr: "" });
      }
      expect((await readFile(join(home, out))).equals(image)).toBe(true);
      const refused = await runInNamespace(script, "backup", "--repository", "posix:repo", "--source", "volume");
      expect(refused.status, name).toBe(1);
      expect(refused.stderr).toMatch(/The repository .* is unavailable \((?:EROFS|EACCES)\)/);
    }
    await chmod(join(home, "repo"), 0o770);
  }, 120_000);

  test.each([
    { args: [] },
    { args: ["backup", "--repository", "posix:repo"] },
    { args: ["backup", "--repository", "nonsense", "--source", "volume"] },
    { args: ["backup", "--repository", "posix:repo", "--source", "volume", "--object-bytes", "many"] },
    { args: ["backup", "--repository", "posix:repo", "--source", "volume", "--object-bytes", "5000"] },
    { args: ["backup", "--repository", "posix:repo", "--source", "volume", "--compression", "lzma"] },
    { args: ["backup", "--repository", "posix:repo", "--source", "volume", "--parent", "x"] },
    { args: ["restore", "--repository", "posix:repo", "--backup", randomUUID(), "--target", "out"] },
    { args: ["list", "--repository", "posix:repo", "--unknown"] },
    { args: ["list", "--repository", "posix:repo", "--key-file", "missing"] },
    { args: ["rewrap", "--repository", "posix:repo", "--all"] },
    { args: ["rewrap", "--repository", "posix:repo", "--key-command", "true"] },
    { args: ["explode"] },
  ])("wrong usage ends with status 2: $args", async ({ args }) => {
    await writeFile(join(home, "volume"), "abc");
    await using repository = await openRepository(`posix:${join(home, "repo")}`);
    await repository.initialize();
    const [refused, asJson] = await Promise.all([run(...args), run(...args, "--json")]);
    expect(refused.status).toBe(2);
    expect(refused.stderr).not.toBe("");
    expect(asJson.status).toBe(2);
    expect(errorResult.parse(JSON.parse(asJson.stdout)).error.code).toBe("usage");
  });

  test("the operator's own path is followed to a block device, and to the file of a source", async (context) => {
    const image = randomBytes(64 * 1024);
    await writeFile(join(home, "disk"), image);
    await writeFile(join(home, "blank"), Buffer.alloc(image.length));
    await symlink(join(home, "disk"), join(home, "volume"));
    const { id } = await backup();
    await symlink(join(home, "blank"), join(home, "link-to-file"));
    const restore = (target: string) =>
      run("restore", "--repository", "posix:repo", "--backup", id, "--target", target);
    expect((await restore("link-to-file")).status).toBe(1);
    const source = await attachLoopDevice(join(home, "disk"));
    const target = await attachLoopDevice(join(home, "blank"));
    context.skip(!source || !target, "no loop devices here");
    await rm(join(home, "volume"));
    await symlink(source ?? "", join(home, "volume"));
    await symlink(target ?? "", join(home, "restored"));
    const made = await backup();
    expect(made.volume_bytes).toBe(image.length);
    expect((await restore("restored")).status).toBe(0);
    expect((await readFile(target ?? "")).equals(image)).toBe(true);
  });

  test("a source or repository that is missing ends with status 1", async () => {
    await writeFile(join(home, "volume"), "abc");
    const noSource = await run("backup", "--repository", "posix:repo", "--source", "missing", "--json");
    expect(noSource.status).toBe(1);
    expect(errorResult.parse(JSON.parse(noSource.stdout)).error.code).toBe("source_missing");
    expect(await readdir(home)).toEqual(["volume"]);
    const noRepository = await run("list", "--repository", "posix:missing", "--json");
    expect(noRepository.status).toBe(1);
    expect(errorResult.parse(JSON.parse(noRepository.stdout)).error.code).toBe("repository_unavailable");
  });

  test("help explains every command on stdout with status 0", async () => {
    const commands = ["", "init", "backup", "list", "restore", "verify", "export", "import", "rescan", "rewrap"];
    await Promise.all(
      commands.map(async (command) => {
        const help = await run(...(command === "" ? [] : [command]), "--help");
        expect(help.status).toBe(0);
        expect(help.stdout).toContain("Usage: tephra-engine");
      }),
    );
  });
});
