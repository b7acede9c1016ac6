import { execFile, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { openRepository, RepositoryConfigError, RepositoryUnavailableError } from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { describeRepository } from "./repository-contract.ts";

const execute = promisify(execFile);
const namespaces = spawnSync("unshare", ["-Urm", "true"]).status === 0;
/** This file runs itself once more in a namespace where it may mount, for the contract suite. */
const inside = process.env["TEPHRA_TEST_INSIDE_NAMESPACE"] !== undefined;

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-nfs-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

/** Runs a script of the shell, and then a program against the share, as root of a mount namespace of its own. */
async function inNamespace(setUp: string, program: string): Promise<Record<string, unknown>> {
  const prelude = `import { openRepository } from ${JSON.stringify(join(root, "packages/engine/dist/index.js"))};
    const free = { signal: new AbortController().signal, fence: () => {} };
    const said = (promise) => promise.then((value) => value, (error) => ({ error: error.name, message: error.message }));
    const repository = await openRepository(process.env.URL);`;
  const script = `${setUp}\nexec "$NODE" --input-type=module -e "$PROGRAM"`;
  const { stdout } = await execute("unshare", ["-Urm", "sh", "-ec", script], {
    cwd: home,
    env: {
      PATH: process.env["PATH"],
      NODE: projectNode(),
      PROGRAM: `${prelude}\n${program}`,
      POINT: join(home, "mnt", createHash("md5").update("server:/export").digest("hex")),
      URL: `nfs:server:/export?mount_base=${home}/mnt&options=bind`,
    },
  });
  return JSON.parse(stdout);
}

describe.skipIf(inside || !namespaces)("a share, with a bind mount in its place", () => {
  test("is mounted with the options in the folder that Cinder would take, and then a repository", async () => {
    // With the option `bind` the kernel takes the share's name for a folder, so a folder of that name stands in for a server.
    const result = await inNamespace(
      `mkdir -p server:/export`,
      `const made = await repository.initialize();
      await repository.ensureContainer("c");
      const put = await repository.putIfAbsent({ container: "c", name: "object" }, Buffer.from("bytes"), free);
      const same = (await repository.identity()).id === made.id;
      console.log(JSON.stringify({ put, same, service: repository.service }));`,
    );
    expect(result).toEqual({ put: "stored", same: true, service: "cinder.backup.drivers.nfs.NFSBackupDriver" });
    expect((await readdir(join(home, "server:/export"))).sort()).toEqual([".tephra", "c"]);
    const [point] = await readdir(join(home, "mnt"));
    expect(point).toBe(createHash("md5").update("server:/export").digest("hex"));
    // Seen from outside the namespace, nothing was written where the share was not mounted.
    expect(await readdir(join(home, "mnt", String(point)))).toEqual([]);
  });

  test("that is mounted already is not mounted again", async () => {
    const result = await inNamespace(
      `mkdir -p "$POINT" real && mount --bind real "$POINT"`,
      `await repository.initialize();
      const { readFileSync } = await import("node:fs");
      const mounts = readFileSync("/proc/self/mountinfo", "utf8").split(process.env.POINT + " ").length - 1;
      console.log(JSON.stringify({ mounts }));`,
    );
    expect(result).toEqual({ mounts: 1 });
    expect(await readdir(join(home, "real"))).toEqual([".tephra"]);
  });

  test("that has gone is written to no more, and what lies under its mount point stays as it is", async () => {
    const result = await inNamespace(
      `mkdir -p "$POINT" real && mount --bind real "$POINT"`,
      `await repository.initialize();
      await repository.ensureContainer("c");
      const { execFileSync } = await import("node:child_process");
      execFileSync("umount", [process.env.POINT]);
      const put = await said(repository.putIfAbsent({ container: "c", name: "object" }, Buffer.from("x"), free));
      const container = await said(repository.ensureContainer("c"));
      const identity = await said(repository.identity());
      console.log(JSON.stringify({ put, container, identity }));`,
    );
    const unavailable = { error: RepositoryUnavailableError.name };
    expect(result).toMatchObject({ put: unavailable, container: unavailable, identity: unavailable });
    expect(JSON.stringify(result["put"])).toContain("is not mounted");
    expect(JSON.stringify(result["identity"])).toContain("cannot be mounted");
    const [point] = await readdir(join(home, "mnt"));
    expect(await readdir(join(home, "mnt", String(point)))).toEqual([]);
  });
});

test.each([
  "nfs:server",
  "nfs:-o:/export",
  "nfs:server:/ex port",
  "nfs:server:/export?options=a%20b",
  "nfs:server:/e?x=1",
])("%s is no share", async (url) => {
  await expect(openRepository(url)).rejects.toBeInstanceOf(RepositoryConfigError);
});

if (inside) {
  describeRepository({
    name: "nfs",
    prefix: "names",
    largeBytes: null,
    exclusive: true,
    open: async () => {
      const base = await mkdtemp(join(tmpdir(), "tephra-share-"));
      const share = (export_: string): string => `nfs:server:/${export_}?mount_base=${base}/mnt`;
      const point = join(base, "mnt", createHash("md5").update("server:/export").digest("hex"));
      await execute("mkdir", ["-p", point, join(base, "real")]);
      await execute("mount", ["--bind", join(base, "real"), point]);
      return {
        repository: await openRepository(share("export")),
        container: "some-container",
        otherContainer: "ab/cd/ef",
        again: () => openRepository(share("export")),
        missing: () => openRepository(share("missing")),
        denied: null,
        [Symbol.asyncDispose]: async () => {
          await execute("umount", [point]);
          await rm(base, { recursive: true, force: true });
        },
      };
    },
  });
}

test.skipIf(inside || !namespaces)(
  "the contract is kept, run in a namespace with bind mounts",
  async () => {
    const vitest = join(root, "node_modules/vitest/vitest.mjs");
    const args = [
      "-Urm",
      projectNode(),
      vitest,
      "run",
      "--project",
      "contract",
      "test/contract/repository/nfs.test.ts",
    ];
    const { stdout } = await execute("unshare", args, {
      cwd: root,
      env: { PATH: process.env["PATH"], TEPHRA_TEST_INSIDE_NAMESPACE: "1", NO_COLOR: "1" },
      maxBuffer: 2 ** 24,
    });
    expect(stdout).toMatch(/Tests +\d+ passed/);
    expect(Number(/Tests +(\d+) passed/.exec(stdout)?.[1])).toBeGreaterThan(25);
  },
  300_000,
);
