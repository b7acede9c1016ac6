import { execFile } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { chmod, chown, mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { describeBackup, findBackups, findPlaces, openRepository, rescan } from "@tephra/engine";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";

/** One entry that cannot be read, or is somebody else's, is reported as its own problem, wherever it comes in the listing. */
const execute = promisify(execFile);
const { signal } = new AbortController();
const nobody = 65_534;

interface Place {
  folder: string;
  prefix: string;
  metadata: string;
}

let home: string;
let library: string;
let repository: string;
beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-bad-"));
  await chmod(home, 0o755);
  library = join(home, "broken.so");
  await writeFile(join(home, "broken.c"), brokenDisk);
  await execute("cc", ["-shared", "-fPIC", "-o", library, join(home, "broken.c"), "-ldl"]);
});
afterAll(() => rm(home, { recursive: true, force: true }));
beforeEach(async () => {
  repository = join(home, randomUUID());
  await mkdir(repository);
});
afterEach(() => rm(repository, { recursive: true, force: true }));

/** Reading any file whose name is that of BROKEN fails as a broken disk does. */
const brokenDisk = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
static int broken(const char *path) { const char *name = getenv("BROKEN"); return name && path && strstr(path, name); }
#define SHIM(f) int f(const char *path, int flags, ...) { \\
  va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \\
  if (broken(path)) { errno = EIO; return -1; } \\
  int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #f); return next(path, flags, mode); }
SHIM(open)
SHIM(open64)
`;

async function place(): Promise<Place> {
  const id = randomUUID();
  const folder = join(repository, id.slice(0, 2), id.slice(2, 4), id);
  const prefix = `volume_${randomUUID()}_20261120172141_backup_${id}`;
  await mkdir(folder, { recursive: true });
  return { folder, prefix, metadata: join(folder, `${prefix}_metadata`) };
}

const idOf = ({ prefix }: Place): string => prefix.slice(prefix.lastIndexOf("_") + 1);

/** A backup of one block, whole. */
async function backup({ folder, prefix, metadata }: Place): Promise<void> {
  const block = Buffer.alloc(4096, 1);
  const digest = (name: string): string => createHash(name).update(block).digest("hex");
  const head = { backup_description: null, backup_id: prefix.slice(prefix.lastIndexOf("_") + 1), backup_name: null };
  const entry = { compression: "none", length: 4096, md5: digest("md5"), offset: 0 };
  const tail = { version: "1.0.0", volume_id: "v" };
  const created = { created_at: "2026-11-20 17:21:41+00:00" };
  const document = { ...head, ...created, objects: [{ [`${prefix}-00001`]: entry }], parent_id: null, ...tail };
  const hashes = { ...head, chunk_size: 4096, ...created, sha256s: [digest("sha256")], ...tail };
  await writeFile(join(folder, `${prefix}-00001`), block);
  await writeFile(join(folder, `${prefix}_sha256file`), JSON.stringify(hashes, null, 2));
  await writeFile(metadata, JSON.stringify({ ...document, volume_meta: null }, null, 2));
}

const bytes = (path: string, name: string): Buffer =>
  Buffer.concat([Buffer.from(`${path}/`), Buffer.from(name, "latin1")]);

/** What is made in the place of a backup, and whether it is listed with its problem or told as passed over. */
const kinds: Record<string, { make: (place: Place) => Promise<void>; told: "problem" | "passed over" }> = {
  "a symbolic link": {
    make: ({ metadata }) => symlink("/etc/hostname", metadata),
    told: "problem",
  },
  "a folder": { make: async ({ metadata }) => void (await mkdir(metadata)), told: "passed over" },
  "an empty file": { make: ({ metadata }) => writeFile(metadata, ""), told: "problem" },
  "a huge file": {
    make: async ({ metadata }) => {
      await writeFile(metadata, "{");
      await truncate(metadata, 2 ** 40);
    },
    told: "problem",
  },
  "text that is not UTF-8": {
    make: ({ metadata }) => writeFile(metadata, Buffer.from('{"backup_name": "\xff\xfe"}', "latin1")),
    told: "problem",
  },
  "a name that is not UTF-8": {
    make: ({ folder, prefix }) => writeFile(bytes(folder, `${prefix}\xff_metadata`), "{}"),
    told: "passed over",
  },
  "a folder whose name is not UTF-8": {
    make: async ({ folder }) => void (await mkdir(bytes(folder, "\xff\xfe"))),
    told: "passed over",
  },
  "a folder that no container is named": {
    make: async ({ folder }) => void (await mkdir(join(folder, "back\\slash"))),
    told: "passed over",
  },
  "a link to a folder": { make: ({ folder }) => symlink("/etc", join(folder, "link")), told: "passed over" },
};

const positions = ["first", "in the middle", "last"] as const;

/** Two good backups and something else, made in this order. */
async function fill(position: (typeof positions)[number], make: (place: Place) => Promise<void>): Promise<Place[]> {
  const good: Place[] = [];
  for (const at of positions) {
    const here = await place();
    if (at === position) await make(here);
    else good.push(here);
    if (at !== position) await backup(here);
  }
  return good;
}

describe.each(positions)("%s", (position) => {
  test.each(Object.entries(kinds))("%s keeps no other backup from being listed", async (kind, { make, told }) => {
    const good = await fill(position, make);
    await using opened = await openRepository(`posix:${repository}`);
    const passedOver: string[] = [];
    const note = (where: string): void => void passedOver.push(where);
    const listed = [];
    for await (const reference of findBackups(opened, signal, note))
      listed.push(await describeBackup(reference, signal));
    const whole = listed.filter(({ problem }) => problem === null).map(({ reference }) => reference.backupId);
    expect(whole.sort()).toEqual(good.map(idOf).sort());
    expect(listed.length - whole.length).toBe(told === "problem" ? 1 : 0);
    // A link to a folder is no folder: nothing is behind it, and there is nothing to tell.
    if (kind !== "a link to a folder") expect(passedOver.length).toBe(told === "problem" ? 0 : 1);
    const rescanned = await rescan(opened, signal);
    expect(rescanned.filter(({ problem }) => problem === null)).toHaveLength(2);
    expect(rescanned.filter(({ unreadable }) => unreadable)).toHaveLength(kind === "a symbolic link" ? 1 : 0);
    const places = await Array.fromAsync(findPlaces(opened, opened.containers(), signal));
    expect(places.filter(({ backupId }) => good.map(idOf).includes(backupId))).toHaveLength(2);
  });

  /** By the command line, as another user or on a disk that breaks. */
  const list = async (command: string, options: { uid?: number; env?: NodeJS.ProcessEnv }) => {
    const program = join(root, "apps/cli/dist/bundle/tephra-engine.js");
    const args = [program, command, "--repository", `posix:${repository}`, "--json"];
    const env = { PATH: process.env["PATH"], ...options.env };
    const { stdout } = await execute(projectNode(), args, { ...options, env, cwd: home });
    return JSON.parse(stdout) as Record<string, { id: string; problem: string | null }[]>;
  };
  const wholeOf = (found: { id: string; problem: string | null }[] = []): string[] =>
    found
      .filter(({ problem }) => problem === null)
      .map(({ id }) => id)
      .sort();

  test("a file that a disk cannot read is the problem of its backup alone", async () => {
    let broken = "";
    const good = await fill(position, async (here) => {
      await backup(here);
      broken = here.prefix;
    });
    const env = { LD_PRELOAD: library, BROKEN: `${broken}_metadata` };
    const { backups = [] } = await list("list", { env });
    expect(wholeOf(backups)).toEqual(good.map(idOf).sort());
    expect(backups.find(({ problem }) => problem !== null)?.problem).toContain("EIO");
    expect(wholeOf((await list("rescan", { env }))["rescan"])).toEqual(good.map(idOf).sort());
  });

  test.runIf(process.getuid?.() === 0)(
    "what another user may not read is the problem of its backup alone",
    async () => {
      for (const closed of ["file", "folder"]) {
        await rm(repository, { recursive: true });
        const good = await fill(position, async (here) => {
          await backup(here);
          await chmod(closed === "file" ? here.metadata : here.folder, 0);
        });
        await chown(repository, nobody, nobody);
        const { backups } = await list("list", { uid: nobody });
        expect(wholeOf(backups)).toEqual(good.map(idOf).sort());
        expect(backups).toHaveLength(closed === "file" ? 3 : 2);
      }
    },
  );
});

test("a repository that is gone is no list of problems", async () => {
  await fill("last", backup);
  await using opened = await openRepository(`posix:${repository}`);
  const found = await Array.fromAsync(findBackups(opened, signal));
  await rm(repository, { recursive: true });
  await expect(describeBackup(found[0] as (typeof found)[number], signal)).rejects.toThrow();
  await expect(Array.fromAsync(findBackups(opened, signal))).rejects.toThrow();
});

test("whatever container a request may name, a listing finds: at every depth that fits into its 255 bytes", async () => {
  await using opened = await openRepository(`posix:${repository}`);
  await opened.initialize();
  const free = { signal, fence: () => {} };
  const containers = [
    "plain",
    Array.from({ length: 128 }, () => "d").join("/"),
    "ünï côdé/x y",
    "\ufffd",
    "...",
    "lost+found/x",
  ];
  for (const container of containers) {
    const name = `volume_v_20261120172141_backup_${containers.indexOf(container)}_metadata`;
    await opened.ensureContainer(container);
    await opened.putIfAbsent({ container, name }, Buffer.from("{}"), free);
  }
  const found = await Array.fromAsync(findBackups(opened, signal));
  expect(found.map(({ container }) => container).sort()).toEqual([...containers].sort());
});
