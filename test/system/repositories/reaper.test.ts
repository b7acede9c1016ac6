import { execFileSync } from "node:child_process";
import { randomInt, randomUUID } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

/** Three seconds of grace stand for the hour. */
const graceSeconds = 3;
const brisk = {
  config: {
    range_bytes: 1 * MiB,
    quotas: { backups: -1, backup_gigabytes: -1, volumes: -1, gigabytes: -1 },
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
    reaper: { grace_minutes: graceSeconds / 60, interval_hours: null },
  },
  repository: { object_bytes: 256 * 1024 },
};

async function importDisk(instance: Instance, user: Journey, name: string, sizeBytes = 4 * MiB): Promise<string> {
  const image = join(instance.dataDir, `${name}.img`);
  await writeIslands(image, sizeBytes + 321, [{ offset: 0, data: randomBytesOf(name, sizeBytes) }]);
  return user.importVolume(image, name);
}

async function ended(instance: Instance, id: string) {
  const operation = await instance.waitFor(
    async () => {
      const { body } = await instance.request("GET", `/ops/operations/${id}`);
      return ["succeeded", "failed", "cancelled"].includes(body.operation.state) && body.operation;
    },
    { what: `operation ${id} has ended`, timeoutMs: 60_000 },
  );
  expect(operation.state, operation.fail_reason).toBe("succeeded");
  return operation;
}

async function reap(instance: Instance, user: Journey, dryRun = false) {
  const { operation } = await user.accepted("POST", "/ops/repositories/main/reap", { dry_run: dryRun });
  return (await ended(instance, operation.id)).result;
}

const none = {
  objects: 0,
  staged: 0,
  temporary: 0,
  uploads: 0,
  volumes: 0,
  snapshots: 0,
  private: 0,
  exports: 0,
};

/** Deletes a volume or snapshot and waits until its row is gone. */
async function discard(instance: Instance, user: Journey, kind: "volumes" | "snapshots", id: string): Promise<void> {
  await user.accepted("DELETE", `${base}/${kind}/${id}`);
  const isGone = async () => (await instance.request("GET", `${base}/${kind}/${id}`)).status === 404;
  await instance.waitFor(isGone, { what: `${kind} ${id} is gone` });
}

/** Every file of the repository and of the volumes, by name and content. */
function everything(instance: Instance): Map<string, string> {
  const files = new Map<string, string>();
  for (const folder of [instance.repositoryDir, instance.volumesDir]) {
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile()) files.set(path.slice(instance.dataDir.length + 1), readFileSync(path, "latin1"));
    }
  }
  return files;
}

const folderOf = (instance: Instance, id: string) => join(instance.repositoryDir, id.slice(0, 2), id.slice(2, 4), id);

/** Makes every file look as if it had been there for a day. */
function age(...folders: string[]): void {
  const yesterday = new Date(Date.now() - 86_400_000);
  for (const folder of folders) {
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      utimesSync(join(entry.parentPath, entry.name), yesterday, yesterday);
    }
  }
}

/** The database forgets a backup, as one does that is put back to what it was yesterday. What it staged has been removed by then. */
async function forget(instance: Instance, id: string): Promise<void> {
  const isTidy = async () => {
    const unfinished = await instance.sql(
      `SELECT 1 FROM tasks JOIN operations ON operations.id = operation_id
       WHERE backup_id = $1 AND tasks.state IN ('ready', 'dispatched', 'running', 'blocked')`,
      [id],
    );
    return unfinished.length === 0;
  };
  await instance.waitFor(isTidy, { what: `nothing of backup ${id} is left to do` });
  await instance.sql("DELETE FROM operations WHERE backup_id = $1", [id]);
  await instance.sql("DELETE FROM backups WHERE id = $1", [id]);
}

/** As if the operations that have ended had done so a day ago, and the backups that are deleted too. */
async function ageRows(instance: Instance): Promise<void> {
  // The names of objects have times too.
  const since = Date.now();
  await instance.waitFor(() => Date.now() - since > (graceSeconds + 1) * 1000, { what: "the grace is over" });
  await instance.sql("UPDATE operations SET finished_at = finished_at - interval '1 day'");
  await instance.sql("UPDATE backups SET deleted_at = deleted_at - interval '1 day' WHERE deleted_at IS NOT NULL");
}

describe("a pass of the reaper", () => {
  it("removes what was made for volumes and snapshots that are gone by now, and drafts of exports that have ended", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const kept = await importDisk(instance, user, "kept", 1 * MiB);
    const volume = await importDisk(instance, user, "gone", 1 * MiB);
    const made = await user.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: volume } });
    const { id: snapshot } = made.snapshot;
    await user.settled("snapshots", snapshot, "available");
    await discard(instance, user, "snapshots", snapshot);
    await discard(instance, user, "volumes", volume);
    const out = join(instance.dataDir, "out.img");
    const { operation } = await user.accepted("POST", `/ops/volumes/${kept}/export`, { path: out });
    await ended(instance, operation.id);
    const again = await user.accepted("POST", `/ops/volumes/${kept}/export`, { path: out });
    const refused = async () => {
      const { body } = await instance.request("GET", `/ops/operations/${again.operation.id}`);
      return body.operation.state === "failed" && body.operation;
    };
    const failed = await instance.waitFor(refused, { what: "an export to a file that is there is refused" });
    expect(failed.fail_reason).toContain("overwrite");
    expect(readdirSync(instance.dataDir).filter((name) => name.startsWith(".tephra-export"))).toEqual([]);

    // A worker that nobody waited for any more gives them their names after all.
    const left = [`volumes/volume-${volume}`, `volumes/snapshot-${snapshot}`, `.tephra-export-${operation.id}-3`];
    const foreign = [`volumes/volume-${randomUUID()}`, `volumes/snapshot-${randomUUID()}`];
    for (const path of [...left, ...foreign]) writeFileSync(join(instance.dataDir, path), "late");
    await ageRows(instance);
    const { removed, names } = await reap(instance, user);
    expect(removed).toEqual({ ...none, volumes: 1, snapshots: 1, exports: 1 });
    expect(names.sort()).toEqual(left.map((path) => join(instance.dataDir, path)).sort());
    const there = readdirSync(instance.volumesDir).map((name) => `volumes/${name}`);
    expect(there).toEqual(expect.arrayContaining([...foreign, `volumes/volume-${kept}`]));
    expect(await sha256Of(out)).toBe(await sha256Of(join(instance.volumesDir, `volume-${kept}`)));
  });

  it.runIf(process.getuid?.() === 0)("passes over what cannot be removed, first, in the middle and last", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const kept = await importDisk(instance, user, "kept", 1 * MiB);
    const { operation } = await user.accepted("POST", `/ops/volumes/${kept}/export`, {
      path: join(instance.dataDir, "out.img"),
    });
    await ended(instance, operation.id);
    const places = { exports: `.tephra-export-${operation.id}-`, private: `volumes/.restore-${operation.id}-` };
    const pathsOf = (claims: readonly number[]) =>
      Object.values(places).flatMap((start) => claims.map((claim) => join(instance.dataDir, `${start}${claim}`)));
    const bad = pathsOf([1, 3, 5]);
    for (const path of pathsOf([1, 2, 3, 4, 5])) writeFileSync(path, "late");
    // Nobody can remove what something is mounted on, root neither.
    for (const path of bad) execFileSync("mount", ["--bind", path, path]);
    try {
      await ageRows(instance);
      const result = await reap(instance, user);
      expect(result.removed).toEqual({ ...none, exports: 2, private: 2 });
      expect(result.names.sort()).toEqual(pathsOf([2, 4]).sort());
      expect(result.passed_over.sort()).toEqual(bad.toSorted());
    } finally {
      for (const path of bad) execFileSync("umount", [path]);
    }
    expect((await reap(instance, user)).removed).toEqual({ ...none, exports: 3, private: 3 });
  });

  it("removes what a killed copy has left, after its grace, and nothing else", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const kept = await user.backUp(await importDisk(instance, user, "kept"));
    const volume = await importDisk(instance, user, "lost");
    await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume]);
    await instance.workers[0]?.stop();
    const foreign = await plantForeign(instance, kept);
    const before = everything(instance);
    const doomed = await instance.startWorker(crashAt("copy:25"));
    const lost = await user.startBackup(volume, { force: true });
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the copy" });
    writeFileSync(join(instance.repositoryDir, ".tephra/tmp", randomUUID()), "half of an obj");
    const left = [...everything(instance).keys()].filter((path) => !before.has(path));
    expect(left.filter((path) => path.includes(lost)).length).toBeGreaterThan(0);
    expect(left.filter((path) => path.includes(".tephra/tmp/")).length).toBeGreaterThan(0);

    // While its operation lives, and until the grace is over, all of it stays: also what looks old.
    age(instance.repositoryDir, instance.volumesDir);
    const released = async () =>
      (await instance.sql("SELECT 1 FROM tasks WHERE state IN ('running', 'dispatched')")).length === 0;
    await instance.waitFor(released, { what: "the dead worker's tasks are released" });
    await instance.sql("UPDATE tasks SET run_after = now() + interval '58 seconds' WHERE state = 'ready'");
    await instance.startWorker();
    const temporary = left.filter((path) => path.includes(".tephra/tmp/")).length;
    expect((await reap(instance, user, true)).removed).toEqual({ ...none, temporary });
    await instance.sql("UPDATE tasks SET state = 'cancelled' WHERE state = 'ready'");
    await instance.sql("UPDATE operations SET state = 'failed', finished_at = now() WHERE backup_id = $1", [lost]);
    await ageRows(instance);
    const now = new Date();
    for (const path of left) utimesSync(join(instance.dataDir, path), now, now);
    expect((await reap(instance, user, true)).removed).toMatchObject({ objects: 0, temporary: 0, snapshots: 0 });
    age(instance.repositoryDir, instance.volumesDir);

    // A row in whatever state keeps its objects; the temporary snapshot belongs to the operation alone.
    expect((await reap(instance, user, true)).removed).toMatchObject({ objects: 0, snapshots: 1, staged: 1 });
    await instance.sql("DELETE FROM backups WHERE id = $1", [lost]);
    const dry = await reap(instance, user, true);
    expect([...everything(instance).keys()].filter((path) => !before.has(path))).toEqual(left);
    const reaped = await reap(instance, user);
    expect({ ...reaped, dry_run: true }).toEqual(dry);
    expect(reaped.removed).toMatchObject({ temporary, snapshots: 1, staged: 1, uploads: 0 });
    expect(reaped.names.length).toBeGreaterThan(3);
    expect(everything(instance)).toEqual(before);
    expect((await reap(instance, user)).removed).toEqual(none);
    expect(foreign.every((path) => before.has(path))).toBe(true);
    await user.settled("backups", kept, "available");
    const { operation } = await user.accepted("POST", `/ops/backups/${kept}/verify`, { mode: "deep" });
    expect((await ended(instance, operation.id)).result.verify.damaged).toEqual([]);
  });

  it("sweeps a second time where this service has deleted, and leaves whole backups that it does not know", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const volume = await importDisk(instance, user, "disk");
    const sha256 = await sha256Of(user.volumeFile(volume));
    const [deleted, forgotten, twin] = [
      await user.backUp(volume),
      await user.backUp(volume),
      await user.backUp(volume),
    ];
    const aside = join(instance.dataDir, "aside");
    await cp(folderOf(instance, deleted), aside, { recursive: true });
    await user.deleteBackup(deleted);
    await user.expectQuiet();
    // What a writer that did not know of its end has put once more.
    await cp(aside, folderOf(instance, deleted), { recursive: true });
    await forget(instance, forgotten);
    // Another row, of another id, has the objects of the third, whose own row is gone.
    await instance.sql("UPDATE backups SET id = $2 WHERE id = $1", [twin, randomUUID()]);
    await instance.sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, repository, container, service_metadata,
         data_timestamp, deleted_at)
       SELECT $1::uuid, project_id, user_id, volume_id, 'deleted', size_gib, repository, container, service_metadata, data_timestamp, now()
       FROM backups WHERE service_metadata LIKE $2`,
      [twin, `%${twin}`],
    );
    const shared = readdirSync(folderOf(instance, twin));
    expect((await reap(instance, user)).removed).toEqual(none);
    age(instance.repositoryDir);
    expect((await reap(instance, user)).removed, "the tombstone is young").toEqual(none);
    await ageRows(instance);
    const objects = readdirSync(aside).length;
    const reaped = await reap(instance, user);
    expect(reaped.removed).toEqual({ ...none, objects });
    expect(reaped.unknown).toEqual([expect.stringContaining(forgotten)]);
    expect(readdirSync(folderOf(instance, twin))).toEqual(shared);
    expect(() => readdirSync(folderOf(instance, deleted))).toThrow("ENOENT");
    const rescan = await user.accepted("POST", "/ops/repositories/main/rescan", {});
    expect((await ended(instance, rescan.operation.id)).result).toMatchObject({ entered: 1, problems: [] });
    await user.expectExact(forgotten, sha256);
  });

  it("leaves alone what a refused import was refused for", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const id = await user.backUp(await importDisk(instance, user, "disk"));
    const { body } = await instance.request("GET", `${base}/backups/${id}/export_record`);
    await forget(instance, id);
    const stray = join(folderOf(instance, id), "stray");
    const [metadata = ""] = readdirSync(folderOf(instance, id)).filter((name) => name.endsWith("_metadata"));
    writeFileSync(join(folderOf(instance, id), metadata.replace("_metadata", "-00099")), "x");
    writeFileSync(stray, "x");
    expect((await instance.request("POST", `${base}/backups/import_record`, body)).status).toBe(201);
    await user.settled("backups", id, "error");
    await user.deleteBackup(id);
    age(instance.repositoryDir);
    await ageRows(instance);
    const before = everything(instance);
    expect(await reap(instance, user)).toMatchObject({ removed: none, unknown: [expect.stringContaining(id)] });
    expect(everything(instance)).toEqual(before);
  });

  it("does not run beside a rescan or another pass, and no import takes over what is condemned", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const id = await user.backUp(await importDisk(instance, user, "disk"));
    const { body: record } = await instance.request("GET", `${base}/backups/${id}/export_record`);
    const [row] = await instance.sql("SELECT container, service_metadata AS prefix FROM backups WHERE id = $1", [id]);
    await user.expectQuiet();
    await instance.workers[0]?.stop();
    const ask = (verb: string) => instance.request("POST", `/ops/repositories/main/${verb}`, {});
    const first = await ask("rescan");
    expect([first.status, (await ask("reap")).status]).toEqual([202, 400]);
    await instance.sql("UPDATE operations SET state = 'failed' WHERE id = $1", [first.body.operation.id]);
    await instance.sql("DELETE FROM tasks WHERE operation_id = $1", [first.body.operation.id]);
    const second = await ask("reap");
    expect([second.status, (await ask("rescan")).status, (await ask("reap")).status]).toEqual([202, 400, 400]);
    expect((await ask("rescan")).body.badRequest.message).toContain("busy with repository-reap");
    expect((await instance.request("POST", "/ops/repositories/nowhere/reap", {})).status).toBe(404);

    await forget(instance, id);
    await instance.sql("INSERT INTO condemned_places VALUES ($1, $2, $3)", [row.container, row.prefix, randomUUID()]);
    await instance.startWorker();
    await ended(instance, second.body.operation.id);
    expect((await instance.request("POST", `${base}/backups/import_record`, record)).status).toBe(201);
    const refused = (await user.settled("backups", id, "error")) as unknown as { fail_reason: string };
    expect(refused.fail_reason).toBe("The objects of the backup are being removed by a reaper.");
  });

  it("goes on where a killed worker was, and is begun by the schedule", async () => {
    await using instance = await startInstance({
      workers: 1,
      ...brisk,
      config: { ...brisk.config, reaper: { grace_minutes: graceSeconds / 60, interval_hours: 4 / 3600 } },
    });
    const user = journeyOn(instance);
    const id = await user.backUp(await importDisk(instance, user, "disk"));
    await user.deleteBackup(id);
    await instance.workers[0]?.stop();
    await instance.killApi();
    await ageRows(instance);
    const { prefix } = (await instance.sql("SELECT service_metadata AS prefix FROM backups WHERE id = $1", [id]))[0];
    mkdirSync(folderOf(instance, id), { recursive: true });
    const names = [
      "_metadata",
      "_sha256file",
      ...Array.from({ length: 30 }, (_, i) => `-${String(i + 1).padStart(5, "0")}`),
    ];
    for (const name of names) writeFileSync(join(folderOf(instance, id), prefix + name), "x");
    age(instance.repositoryDir);
    const doomed = await instance.startWorker(crashAt("reap-repository:9"));
    await instance.waitFor(() => !doomed.running(), { what: "the worker died in the pass", timeoutMs: 60_000 });
    expect(readdirSync(folderOf(instance, id)).length).toBeLessThan(names.length);
    const [condemned] = await instance.sql("SELECT operation_id FROM condemned_places");
    await instance.startApi();
    await instance.startWorker();
    await ended(instance, condemned.operation_id);
    expect(() => readdirSync(folderOf(instance, id))).toThrow("ENOENT");
    expect(await instance.sql("SELECT 1 FROM condemned_places")).toEqual([]);
  });
});

/** Files of others, and files that nearly look like ours. */
async function plantForeign(instance: Instance, kept: string): Promise<string[]> {
  const id = randomUUID();
  const prefix = `volume_${randomUUID()}_20200101000000_backup_${id}`;
  const names = [
    "photos/cat.jpg",
    `photos/${prefix}`,
    `photos/${prefix}-0001`,
    `photos/${prefix}-00001.bak`,
    `photos/${prefix}_metadata~`,
    `photos/${prefix}-000001`,
    `photos/${prefix.slice(0, -1)}-00001`,
    `photos/volume_x_20200101000000_backup_short-00001`,
    `photos/volume_${randomUUID()}_20201399000000_backup_${id}-00001`,
    `photos/x${prefix}-00001`,
    ".tephra/records/anything",
    `.tephra/records/${id}`,
    ".tephra/not-an-id/slice",
    ".tephra/tmp/not-an-id",
  ];
  const paths = names.map((name) => join("repository", name));
  paths.push(`volumes/snapshot-${randomUUID()}`, `volumes/volume-${randomUUID()}`, "volumes/.hidden");
  for (const path of paths) {
    mkdirSync(join(instance.dataDir, path, ".."), { recursive: true });
    writeFileSync(join(instance.dataDir, path), path);
  }
  // Beside the objects of a backup that is there.
  const beside = join(folderOf(instance, kept), "notes.txt");
  writeFileSync(beside, "x");
  await rm(beside);
  return paths;
}

it("removes nothing that is reachable while backups, imports, deletions and passes run at once", async () => {
  const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomInt(2 ** 31));
  process.stdout.write(`reaper: seed ${seed}\n`);
  const random = seededOf(seed);
  await using instance = await startInstance({
    workers: 2,
    ...brisk,
    // Hardly any grace: only the rows protect what is in flight, but for files of puts, of which one may take a second on a busy machine.
    config: { ...brisk.config, reaper: { grace_minutes: 0.05, interval_hours: null } },
  });
  const user = journeyOn(instance);
  const volumes = await Promise.all(["a", "b", "c"].map((name) => importDisk(instance, user, name, 2 * MiB)));
  const live = new Map<string, string[]>();
  let passes = 0;
  let removed = 0;
  let busy = true;
  const reaper = (async () => {
    while (busy) {
      const result = await reap(instance, user);
      removed += result.removed.objects;
      passes += 1;
    }
  })();
  const play = async (volume: string): Promise<void> => {
    const chain: string[] = [];
    live.set(volume, chain);
    for (let round = 0; round < 6; round += 1) {
      const change = {
        offset: Math.floor(random() * (2 * MiB - 20_000)),
        data: randomBytesOf(`${seed} ${round}`, 20_000),
      };
      await writeIslands(user.volumeFile(volume), null, [change]);
      chain.push(await user.backUp(volume, { incremental: chain.length > 0 }));
      const newest = chain.at(-1) ?? "";
      const dice = random();
      if (dice < 0.45 && chain.length > 1) {
        const aside = join(instance.dataDir, newest);
        await cp(folderOf(instance, newest), aside, { recursive: true });
        await user.deleteBackup(newest);
        chain.pop();
        // As a late writer would.
        age(aside);
        await cp(aside, folderOf(instance, newest), { recursive: true, preserveTimestamps: true });
      } else if (dice < 0.75) {
        const { body } = await instance.request("GET", `${base}/backups/${newest}/export_record`);
        await forget(instance, newest);
        expect((await instance.request("POST", `${base}/backups/import_record`, body)).status).toBe(201);
        await user.settled("backups", newest, "available");
      }
    }
  };
  try {
    await Promise.all(volumes.map(play));
  } finally {
    busy = false;
    await reaper;
  }
  const reachable = [...live.values()].flat();
  const folders = () =>
    readdirSync(instance.repositoryDir, { recursive: true, encoding: "utf8" })
      .filter((path) => /^[0-9a-f]{2}\/[0-9a-f]{2}\/[^/]+$/.test(path))
      .map((path) => path.slice(6));
  await instance.waitFor(
    async () => {
      removed += (await reap(instance, user)).removed.objects;
      return folders().length === reachable.length;
    },
    { what: "every orphan is gone" },
  );
  expect(folders().sort()).toEqual([...reachable].sort());
  for (const id of reachable) {
    const { operation } = await user.accepted("POST", `/ops/backups/${id}/verify`, { mode: "deep" });
    expect((await ended(instance, operation.id)).result.verify.damaged, `backup ${id}, seed ${seed}`).toEqual([]);
  }
  await user.expectQuiet();
  process.stdout.write(
    `reaper: ${passes} passes, ${removed} objects removed, ${reachable.length} backups verified whole\n`,
  );
  expect(passes).toBeGreaterThan(3);
  expect(await instance.sql("SELECT 1 FROM condemned_places")).toEqual([]);
});

function seededOf(seed: number): () => number {
  let at = 0;
  return () => {
    at += 1;
    return randomBytesOf(`${seed}:${at}`, 4).readUInt32BE() / 2 ** 32;
  };
}
