import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { exportLeftovers, openRepository, openVolumeBackend } from "@tephra/engine";
import { afterEach, beforeEach, expect, test } from "vitest";
import { freeContext } from "../../format/backup-fixture.ts";

const preload = new URL("../../kit/kill-at-file.ts", import.meta.url).href;
const program = fileURLToPath(new URL("../../kit/file-verbs.ts", import.meta.url));
const id = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`;
const before = [
  `volumes/volume-${id(1)}`,
  `volumes/volume-${id(3)}`,
  "users/image",
  "repository/.tephra/repository.json",
];
/** More calls than any verb makes. */
const callsMax = 40;

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-left-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

async function layOut(): Promise<void> {
  for (const name of ["volumes", "users"]) {
    await rm(join(home, name), { recursive: true, force: true });
    await mkdir(join(home, name));
  }
  await rm(join(home, "repository"), { recursive: true, force: true });
  await using repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
  for (const path of before.slice(0, 3)) await writeFile(join(home, path), Buffer.alloc(5000, 1));
}

/** @returns whether the program came to its end before the n-th call */
function runTo(verb: string, n: number): Promise<boolean> {
  const env = { ...process.env, KILL_AT_FILE: `${n}` };
  return new Promise((resolve, reject) => {
    execFile(process.execPath, ["--import", preload, program, home, verb], { env }, (error, stdout, stderr) => {
      if (error?.signal === "SIGKILL") return resolve(false);
      if (stdout.includes("calls ")) return resolve(true);
      reject(new Error(`${verb}: ${stderr}`));
    });
  });
}

/** Every file that was not there before. */
async function newFiles(): Promise<string[]> {
  const entries = await readdir(home, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name).slice(home.length + 1));
  return paths.filter((path) => !before.includes(path)).sort();
}

/** Removes what the reaper is shown, as for operations that have ended and rows that are gone. */
async function removeLeftovers(): Promise<void> {
  const backend = await openVolumeBackend({ driver: "file", path: join(home, "volumes") });
  for await (const leftover of backend.leftovers()) {
    if (!before.includes(leftover.path.slice(home.length + 1))) await backend.removeLeftover(leftover);
  }
  for await (const left of exportLeftovers(join(home, "users"), { roots: [join(home, "users")] })) await left.remove();
  await using repository = await openRepository(`posix:${join(home, "repository")}`);
  for await (const leftover of repository.leftovers([])) await repository.removeLeftover(leftover, freeContext());
}

/** What a verb has given its name is no leftover: the file that a user wanted, an object of a repository. */
const results: Record<string, string> = { export: "users/out", put: "repository/.tephra/object" };

test.each(["create", "clone", "snapshot", "probe", "import", "export", "restore", "together", "put"])(
  "%s, killed after every call that makes a file, leaves nothing that the reaper is not shown",
  { timeout: 240_000 },
  async (verb) => {
    let kills = 0;
    for (let n = 1; n <= callsMax; n++) {
      await layOut();
      const ended = await runTo(verb, n);
      const made = await newFiles();
      await removeLeftovers();
      const left = (await newFiles()).filter((path) => path !== results[verb]);
      expect(left, `killed at call ${n}, which left ${made.join(", ")}`).toEqual([]);
      if (ended) break;
      kills = n;
    }
    expect(kills).toBeGreaterThan(0);
    expect(kills).toBeLessThan(callsMax);
  },
);
