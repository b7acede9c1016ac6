import { randomBytes, randomUUID } from "node:crypto";
import {
  type Config,
  type Database,
  forceDeleteVolume,
  InvalidError,
  NotFoundError,
  type Principal,
  requestBackup,
  requestBackupDelete,
  requestBackupForceDelete,
  requestRestore,
  resetBackupStatus,
} from "@tephra/control";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";
import { Random } from "../reliability/fuzz/random.ts";

/** Set TEPHRA_TEST_SEED to repeat a run, as far as the database does things in the same order. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const races = 100;
const racers = 3;

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  const opened = await openControl(stack, { connectionsMax: 8 });
  database = opened.database;
  const read = opened.config;
  const unlimited = Object.fromEntries(Object.keys(read.quotas).map((name) => [name, -1]));
  config = { ...read, quotas: unlimited as Config["quotas"] };
});
afterAll(() => stack.disposeAsync());

const principal: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };

/** A volume with a full backup, both at rest. */
async function addBackup(): Promise<{ volumeId: string; id: string }> {
  const [volumeId, id] = [randomUUID(), randomUUID()];
  const owner = {
    projectId: principal.projectId,
    userId: "u",
    sizeGib: 1,
    availabilityZone: "nova",
    status: "available",
  };
  await database.volume.create({ data: { ...owner, id: volumeId, sizeBytes: 4096n, backend: "files" } });
  const stored = { repository: "main", container: "c", serviceMetadata: "p", volumeBytes: 4096n };
  await database.backup.create({ data: { ...owner, ...stored, id, volumeId, dataTimestamp: new Date() } });
  return { volumeId, id };
}

const plain = {
  name: null,
  description: null,
  metadata: {},
  availabilityZone: null,
  snapshotId: null,
  container: null,
};

type Racer = (backup: { volumeId: string; id: string }) => Promise<unknown>;

const build: Racer = ({ volumeId }) =>
  requestBackup(database, config, principal, { ...plain, volumeId, incremental: true, force: true });
const racersOf: readonly Racer[] = [
  build,
  build,
  ({ id }) => requestBackupDelete(database, config, principal, id),
  ({ id }) => requestBackupForceDelete(database, principal, id),
  ({ id }) => requestRestore(database, config, principal, { backupId: id, volumeId: null, name: null }),
  ({ id, volumeId }) => requestRestore(database, config, principal, { backupId: id, volumeId, name: null }),
  ({ id }) => resetBackupStatus(database, principal, id, "error"),
  ({ volumeId }) => forceDeleteVolume(database, principal, volumeId, { cascade: true }),
];

it(`whoever builds on a backup, restores or deletes it at the same moment: it is there as long as it is needed (seed ${seed})`, {
  timeout: 120_000,
}, async () => {
  const random = new Random(seed);
  let won = 0;
  for (let race = 0; race < races; race += 1) {
    const backup = await addBackup();
    const chosen = Array.from({ length: racers }, () => racersOf[random.below(racersOf.length)] ?? build);
    for (const outcome of await Promise.allSettled(chosen.map((racer) => racer(backup)))) {
      if (outcome.status === "fulfilled") won += 1;
      else if (!(outcome.reason instanceof InvalidError || outcome.reason instanceof NotFoundError))
        throw outcome.reason;
    }
  }
  const [found] = await database.$queryRaw<Record<string, unknown>[]>`SELECT
    (SELECT count(*)::int FROM backups child JOIN backups parent ON parent.id = child.parent_id
      WHERE child.deleted_at IS NULL AND child.status <> 'deleting' AND (parent.deleted_at IS NOT NULL OR parent.status = 'deleting')
    ) AS "built on what goes",
    (SELECT count(*)::int FROM operations o JOIN backups b ON b.id = o.backup_id
      WHERE o.state IN ('queued', 'running') AND o.kind = 'backup-restore' AND b.status <> 'restoring'
    ) AS "restores of a backup that is something else",
    (SELECT count(*)::int FROM backups b WHERE b.status IN ('creating', 'restoring', 'deleting') AND b.deleted_at IS NULL
      AND NOT EXISTS (SELECT FROM operations o WHERE o.backup_id = b.id AND o.state IN ('queued', 'running'))
    ) AS "backups that nobody works on",
    (SELECT count(*)::int FROM volumes v WHERE v.status IN ('backing-up', 'restoring-backup', 'deleting')
      AND NOT EXISTS (SELECT FROM operations o WHERE o.volume_id = v.id AND o.state IN ('queued', 'running'))
    ) AS "volumes that nobody works on",
    (SELECT count(*)::int FROM operations o JOIN volumes v ON v.id = o.volume_id
      WHERE o.state IN ('queued', 'running') AND o.kind = 'backup-restore' AND v.status <> 'restoring-backup'
    ) AS "restores to a volume that is something else"`;
  const nothing = Object.fromEntries(Object.keys(found ?? {}).map((name) => [name, 0]));
  process.stdout.write(`races: seed ${seed}, ${races} of ${racers}: ${won} won\n`);
  expect(found, `seed ${seed}`).toEqual(nothing);
  expect(won).toBeGreaterThan(races);
});

it("a restore that is a moment faster than a reset or a forced deletion of its backup is cancelled by it", async () => {
  for (const verb of [
    (id: string) => resetBackupStatus(database, principal, id, "error"),
    (id: string) => requestBackupForceDelete(database, principal, id),
  ]) {
    const { id } = await addBackup();
    const waiting = async (count: number) => {
      const [row] = await database.$queryRaw<{ count: number }[]>`
        SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
      return row?.count === count;
    };
    let restored: Promise<unknown> = Promise.resolve();
    let ended: Promise<unknown> = Promise.resolve();
    // Both wait for the backup, in this order; by then each has read what there is.
    await database.$transaction(async (tx) => {
      await tx.$queryRaw`SELECT FROM backups WHERE id = ${id}::uuid FOR UPDATE`;
      restored = requestRestore(database, config, principal, { backupId: id, volumeId: null, name: null });
      await waitFor(() => waiting(1), { what: "the restore waits" });
      ended = verb(id);
      await waitFor(() => waiting(2), { what: "the other waits, too" });
    });
    await Promise.all([restored, ended]);
    const operations = await database.operation.findMany({ where: { backupId: id }, orderBy: { createdAt: "asc" } });
    expect(operations[0]).toMatchObject({ kind: "backup-restore", state: "cancelled" });
  }
});
