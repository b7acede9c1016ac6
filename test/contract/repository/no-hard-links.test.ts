import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { openRepository } from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packageFile, unpackPackages } from "../../../scripts/debian-packages.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { describeRepository } from "./repository-contract.ts";

const execute = promisify(execFile);

/** Only root may open the device by which file systems in user space are mounted. */
function canMount(): boolean {
  try {
    accessSync("/dev/fuse", constants.R_OK | constants.W_OK);
    return process.getuid?.() === 0;
  } catch {
    return false;
  }
}

describe.runIf(canMount())("on exFAT, which has no hard links", () => {
  let home: string;
  let mount: string;
  let device: string;
  let places = 0;
  beforeAll(async () => {
    const settings = { name: "exfat", packages: ["exfat-fuse", "exfatprogs"] };
    const env = { ...process.env, ...(await unpackPackages(settings, (line) => process.stderr.write(`${line}\n`))) };
    home = await mkdtemp(join(tmpdir(), "tephra-exfat-"));
    mount = join(home, "mnt");
    const image = join(home, "image");
    await mkdir(mount);
    await writeFile(image, "");
    await truncate(image, 256 * 1024 * 1024);
    await execute(packageFile("exfat", "{usr/,}sbin/mkfs.exfat"), [image], { env });
    device = (await execute("losetup", ["-f", "--show", image])).stdout.trim();
    await execute(packageFile("exfat", "{usr/,}sbin/mount.exfat-fuse"), [device, mount], { env });
    const mounted = async () => (await execute("cat", ["/proc/self/mounts"])).stdout.includes(mount);
    await waitFor(mounted, { what: "exFAT is mounted", timeoutMs: 30_000 });
  }, 300_000);
  afterAll(async () => {
    await execute("umount", [mount]).catch(() => {});
    await execute("losetup", ["-d", device]).catch(() => {});
    await rm(home, { recursive: true, force: true });
  });

  const openPlace = async () => {
    places += 1;
    const path = join(mount, `place-${places}`);
    await mkdir(path);
    return { path, repository: await openRepository(`posix:${path}`) };
  };

  test("is said when a repository is made there", async () => {
    const { repository } = await openPlace();
    await repository.initialize();
    expect((await repository.remarks()).join()).toContain("hard links");
  });

  describeRepository({
    name: "posix on exFAT",
    prefix: "names",
    largeBytes: null,
    exclusive: true,
    open: async () => {
      const { path, repository } = await openPlace();
      return {
        repository,
        container: "some-container",
        otherContainer: "ab/cd/ef",
        again: () => openRepository(`posix:${path}`),
        missing: () => openRepository(`posix:${join(path, "missing")}`),
        denied: null,
        [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
      };
    },
  });
});

test("an ordinary file system leaves nothing to say", async () => {
  const path = await mkdtemp(join(tmpdir(), "tephra-plain-"));
  try {
    const repository = await openRepository(`posix:${path}`);
    await repository.initialize();
    expect(await repository.remarks()).toEqual([]);
  } finally {
    await rm(path, { recursive: true, force: true });
  }
});
