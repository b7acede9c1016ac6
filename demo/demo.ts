// The whole journey of a volume, on a Tephra of its own: a real file system is imported, backed up, changed, backed up
// again, restored and compared; then a worker is killed in the middle of a backup.
import { rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { root } from "../scripts/bootstrap.mjs";
import { poll } from "../scripts/poll.ts";
import type { Program } from "../scripts/spawn-program.ts";
import { type House, type Operation, openHouse, project } from "../test/kit/house.ts";
import { changeExt4Image, findExt4Tools, isExt4, makeExt4Image } from "./ext4-image.ts";
import { changedBytes, overwriteBlocks, sha256Of } from "./image-bytes.ts";
import { mib, renderTable } from "./table.ts";

const MiB = 1024 * 1024;
const imageBytes = 1024 * MiB;
/** What the image holds; the rest is free space. Two cores compress about 80 MB of it in a second. */
const dataBytes = 320 * MiB;
const changeShare = 0.02;
const objectBytes = 4 * MiB;
const workerSlots = 2;

interface Row {
  operation: string;
  done: Operation;
  seconds: number;
  verdict: string;
}

interface Journey {
  house: House;
  rangeBytes: number;
  rows: Row[];
  /** One per comparison: whether it held. */
  verdicts: boolean[];
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { image: { type: "string" } } });
  const given = values.image === undefined ? null : resolve(process.env["INIT_CWD"] ?? ".", values.image);
  if (given !== null && !(await stat(given)).isFile()) throw new Error(`${given} is no regular file`);
  const rangeBytes = rangeBytesFor(given === null ? imageBytes : (await stat(given)).size);
  await using house = await openHouse({
    workers: 2,
    importRoots: given === null ? [] : [dirname(given)],
    config: {
      range_bytes: rangeBytes,
      repository: { object_bytes: objectBytes },
      // A worker that was killed is missed within three seconds.
      worker: { slots: workerSlots, threads: 1, lease_ms: 3_000, heartbeat_ms: 1_000 },
      tasks: { reconcile_ms: 500 },
    },
    say,
  });
  const journey: Journey = { house, rangeBytes, rows: [], verdicts: [] };
  await travel(journey, given);
  report(journey);
}

/** Sixteen ranges, so that there is something to share and something to lose; larger ones than 64 MiB show less. */
function rangeBytesFor(sizeBytes: number): number {
  return Math.min(64 * MiB, Math.max(1, Math.ceil(sizeBytes / 16 / objectBytes)) * objectBytes);
}

async function travel(journey: Journey, given: string | null): Promise<void> {
  const { house } = journey;
  const image = given ?? join(house.dir, "source.img");
  const files = given === null ? await makeImage(image) : [];
  const volumeId = await importVolume(journey, image);
  const firstSha = await sha256Of(image);
  const full = await backUp(journey, "full backup", { volume_id: volumeId });
  await changeVolume(house, { volumeId, image, files });
  const secondSha = await sha256Of(house.volumeFile(volumeId));
  if (secondSha === firstSha) throw new Error("the change did not reach the volume");
  const incremental = await backUp(journey, "incremental", { volume_id: volumeId, incremental: true });
  await restoreAndCompare(journey, "restore of full", { backupId: full, sha: firstSha });
  await restoreAndCompare(journey, "restore of incremental", { backupId: incremental, sha: secondSha });
  const killed = await backUpAndKill(journey, volumeId);
  const exact = await restoreAndCompare(journey, "restore of that", { backupId: killed.backupId, sha: secondSha });
  killed.row.verdict = verdictOf(journey, exact && killed.keptAll, killed.row.verdict);
}

async function makeImage(path: string): Promise<{ path: string; bytes: number }[]> {
  const tools = findExt4Tools();
  if (tools === null) {
    throw new Error("mkfs.ext4 and debugfs are missing: install e2fsprogs, or give an image with --image FILE");
  }
  say(`making an ext4 image of ${mib(imageBytes)} MiB from files of this machine`);
  const sources = ["/usr/lib", "/usr/share", join(root, "node_modules")];
  const files = await makeExt4Image(tools, { path, sizeBytes: imageBytes, dataBytes, sources });
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  say(`it holds ${files.length} files of ${mib(bytes)} MiB`);
  return files;
}

async function importVolume({ house, rows }: Journey, image: string): Promise<string> {
  say("importing it as a volume");
  const started = performance.now();
  const body = { path: image, name: "demo", project_id: project };
  const { operation } = await house.call<{ operation: { id: string } }>("POST", "/ops/volumes/import", body);
  const done = await house.finished({ id: operation.id });
  rows.push({ operation: "import", done, seconds: secondsSince(started), verdict: "done" });
  return done.volume_id ?? "";
}

interface BackupRequest {
  volume_id: string;
  incremental?: boolean;
}

async function requestBackup(house: House, backup: BackupRequest): Promise<string> {
  const accepted = await house.call<{ backup: { id: string } }>("POST", `/v3/${project}/backups`, { backup });
  return accepted.backup.id;
}

async function backUp({ house, rows }: Journey, title: string, request: BackupRequest): Promise<string> {
  say(`${title} by two workers`);
  const started = performance.now();
  const backupId = await requestBackup(house, request);
  const done = await house.finished({ kind: "backup-create", backupId });
  rows.push({ operation: title, done, seconds: secondsSince(started), verdict: "done" });
  return backupId;
}

/** The volume is idle, so that its file may be written to, as a guest would write to it while it is attached. */
async function changeVolume(
  house: House,
  { volumeId, image, files }: { volumeId: string; image: string; files: { path: string; bytes: number }[] },
): Promise<void> {
  const path = house.volumeFile(volumeId);
  const bytes = Math.floor((await stat(path)).size * changeShare);
  const tools = (await isExt4(path)) ? findExt4Tools() : null;
  let how = "through its file system";
  try {
    if (tools === null) throw new Error("no ext4 file system, or no debugfs to write to it");
    await changeExt4Image(tools, { path, bytes, files, scratchDir: house.dir });
  } catch (error) {
    how = `by overwriting blocks (${(error as Error).message})`;
    await overwriteBlocks(path, bytes);
  }
  const changed = await changedBytes(image, path);
  const share = ((changed / (await stat(path)).size) * 100).toFixed(1);
  say(`changed ${mib(changed)} MiB of the volume, ${share} %, ${how}`);
}

/** To a new volume, which is exported and compared with what the source was. */
async function restoreAndCompare(
  journey: Journey,
  title: string,
  { backupId, sha }: { backupId: string; sha: string },
): Promise<boolean> {
  const { house, rows } = journey;
  say(`${title} to a new volume`);
  const started = performance.now();
  const body = { restore: { name: title } };
  const path = `/v3/${project}/backups/${backupId}/restore`;
  const { restore } = await house.call<{ restore: { volume_id: string } }>("POST", path, body);
  const done = await house.finished({ kind: "backup-restore", volumeId: restore.volume_id });
  const seconds = secondsSince(started);
  const copy = join(house.dir, `${restore.volume_id}.img`);
  const exported = await house.call<{ operation: { id: string } }>("POST", `/ops/volumes/${restore.volume_id}/export`, {
    path: copy,
  });
  await house.finished({ id: exported.operation.id });
  const exact = (await sha256Of(copy)) === sha;
  await rm(copy);
  rows.push({ operation: title, done, seconds, verdict: verdictOf(journey, exact) });
  return exact;
}

function verdictOf({ verdicts }: Journey, exact: boolean, detail = ""): string {
  verdicts.push(exact);
  return `${exact ? "exact" : "WRONG"}${detail === "" ? "" : `, ${detail}`}`;
}

interface CopyTask {
  ordinal: number;
  state: string;
  claim: number;
  bytes_stored: string;
  finished_at: Date | null;
  pid: number | null;
}

/** A full backup, one of whose workers gets SIGKILL when some ranges are finished and it is copying others. */
async function backUpAndKill(
  { house, rangeBytes, rows }: Journey,
  volumeId: string,
): Promise<{ backupId: string; keptAll: boolean; row: Row }> {
  say("full backup, in the middle of which a worker is killed");
  const started = performance.now();
  const backupId = await requestBackup(house, { volume_id: volumeId });
  const moment = await poll(() => momentToKill(house, backupId), {
    what: "two ranges are finished while a worker copies others",
    timeoutMs: 60_000,
    everyMs: 20,
  });
  if (moment === "missed") throw new Error("the backup was over before a worker could be killed: give a larger image");
  const { before, victim } = moment;
  victim.kill("SIGKILL");
  await victim.exited;
  const finished = before.filter((task) => task.state === "succeeded");
  say(`killed ${victim.name} (process ${victim.pid}) with ${finished.length} of ${before.length} ranges finished`);
  const done = await house.finished({ kind: "backup-create", backupId });
  const seconds = secondsSince(started);
  const after = new Map((await copyTasks(house, backupId)).map((task) => [task.ordinal, task]));
  const kept = finished.filter((task) => {
    const now = after.get(task.ordinal);
    return now?.claim === task.claim && now.finished_at?.getTime() === task.finished_at?.getTime();
  });
  // At most what the killed worker had in its hands is copied a second time.
  const keptAll = kept.length === finished.length && done.bytes_copied_twice <= workerSlots * rangeBytes;
  const verdict = `${kept.length} of ${finished.length} finished ranges kept`;
  const row = { operation: "full, worker killed", done, seconds, verdict };
  rows.push(row);
  return { backupId, keptAll, row };
}

/** "missed" when the backup was over before. */
async function momentToKill(
  house: House,
  backupId: string,
): Promise<{ before: CopyTask[]; victim: Program } | "missed" | undefined> {
  const before = await copyTasks(house, backupId);
  const finished = before.filter((task) => task.state === "succeeded");
  const running = before.find((task) => task.state === "running");
  const victim = house.workers.find((worker) => worker.pid === running?.pid);
  if (finished.length >= 2 && victim !== undefined) return { before, victim };
  const { backup } = await house.call<{ backup: { status: string } }>("GET", `/v3/${project}/backups/${backupId}`);
  return backup.status === "creating" ? undefined : "missed";
}

function copyTasks(house: House, backupId: string): Promise<CopyTask[]> {
  return house.sql<CopyTask>(
    `SELECT t.ordinal, t.state, t.claim, t.bytes_stored, t.finished_at, w.pid
     FROM tasks t JOIN operations o ON o.id = t.operation_id LEFT JOIN workers w ON w.id = t.worker_id
     WHERE o.backup_id = $1 AND o.kind = 'backup-create' AND t.kind = 'copy' ORDER BY t.ordinal`,
    [backupId],
  );
}

function report({ rows, verdicts }: Journey): void {
  const head = ["operation", "logical MiB", "stored MiB", "seconds", "MB/s", "copied twice MiB", "verdict"];
  const cells = rows.map(({ operation, done, seconds, verdict }) => [
    operation,
    mib(done.bytes_total),
    mib(done.bytes_stored),
    seconds.toFixed(1),
    (done.bytes_total / 1e6 / seconds).toFixed(0),
    mib(done.bytes_copied_twice),
    verdict,
  ]);
  const exact = verdicts.filter((held) => held).length;
  process.stdout.write(`\n${renderTable(head, cells)}\n\ndemo: ${exact} of ${verdicts.length} exact\n`);
  if (exact < verdicts.length) process.exitCode = 1;
}

function secondsSince(started: number): number {
  return (performance.now() - started) / 1000;
}

function say(line: string): void {
  process.stderr.write(`demo: ${line}\n`);
}

try {
  await main();
} catch (error) {
  say(`failed: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
