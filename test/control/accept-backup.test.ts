import { randomBytes, randomUUID } from "node:crypto";
import {
  actorOf,
  type Config,
  type Database,
  InvalidError,
  NotFoundError,
  type Principal,
  QuotaExceededError,
  requestBackup,
  setQuota,
} from "@tephra/control";
import { actAs, openDatabase } from "@tephra/control/process";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { startPgbouncer } from "../kit/pgbouncer.ts";
import { waitFor } from "../kit/wait-for.ts";
import { Random } from "../reliability/fuzz/random.ts";

/** Set TEPHRA_TEST_SEED to repeat a run, as far as the database does things in the same order. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;
let config: Config;
beforeAll(async () => {
  ({ database, databaseUrl, config } = await openControl(stack, { connectionsMax: 8 }));
});
afterAll(() => stack.disposeAsync());

const userOf = (projectId: string): Principal => ({
  ...{ userId: "u", projectId, roles: [], isAdmin: false },
  requestId: `req-${projectId}`,
});

const plain = {
  ...{ name: null, description: null, metadata: {}, availabilityZone: null, snapshotId: null, container: null },
  ...{ incremental: false, force: false },
};

const backUp = (principal: Principal, volumeId: string, through = database) =>
  actAs(actorOf(principal), () => requestBackup(through, config, principal, { ...plain, volumeId }));

/** A project that has a quota row of its own, with a volume. */
async function addProject(): Promise<{ principal: Principal; volumeId: string }> {
  const principal = userOf(randomUUID());
  await setQuota(database, config, principal.projectId, { backups: 10 });
  return { principal, volumeId: await addVolume(principal.projectId) };
}

async function addVolume(projectId: string): Promise<string> {
  const id = randomUUID();
  const owner = { projectId, userId: "u", sizeGib: 1, status: "available", availabilityZone: "nova" };
  await database.volume.create({ data: { ...owner, id, sizeBytes: 4096n, backend: "files" } });
  return id;
}

/** All that an accepted backup leaves, of one project. */
async function leftIn(projectId: string) {
  const quota = await database.quota.findUnique({ where: { projectId } });
  return {
    backups: await database.backup.count({ where: { projectId } }),
    operations: await database.operation.count({ where: { projectId } }),
    tasks: await database.task.count({ where: { projectId } }),
    used: [quota?.backupsUsed, quota?.backupGigabytesUsed],
  };
}

const one = { backups: 1, operations: 1, tasks: 1, used: [1, 1] };
const none = { backups: 0, operations: 0, tasks: 0, used: [0, 0] };

const waiting = async (count: number): Promise<boolean> => {
  const [row] = await database.$queryRaw<{ count: number }[]>`
    SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
  return row?.count === count;
};

describe("a backup of a volume, accepted by one statement", () => {
  /** What changes, once the volume has been read and the statement waits for the quota of its project. */
  const changes: [string, (volumeId: string, projectId: string) => string, unknown, typeof one][] = [
    [
      "is taken",
      (id) => `UPDATE volumes SET status = 'reserved' WHERE id = '${id}'`,
      new InvalidError(
        "volume",
        'Volume to be backed up must be available or in-use, but the current status is "reserved".',
      ),
      none,
    ],
    ["is deleted", (id) => `DELETE FROM volumes WHERE id = '${id}'`, expect.any(NotFoundError), none],
    [
      "becomes another project's",
      (id) => `UPDATE volumes SET project_id = 'other' WHERE id = '${id}'`,
      expect.any(NotFoundError),
      none,
    ],
    [
      "grows",
      (id) => `UPDATE volumes SET size_gib = 2, size_bytes = ${2 * 1024 ** 3} WHERE id = '${id}'`,
      null,
      { ...one, used: [1, 2] },
    ],
    ["is renamed", (id) => `UPDATE volumes SET name = 'other' WHERE id = '${id}'`, null, one],
    [
      "no longer fits under the quota",
      (_, projectId) => `UPDATE quotas SET backups = 0 WHERE project_id = '${projectId}'`,
      expect.any(QuotaExceededError),
      none,
    ],
    [
      "is of a project that has lost its row of quotas",
      (_, projectId) => `DELETE FROM quotas WHERE project_id = '${projectId}'`,
      null,
      one,
    ],
  ];
  it.each(changes)("that %s meanwhile", async (_, change, refusal, left) => {
    const { principal, volumeId } = await addProject();
    let asked: Promise<unknown> = Promise.resolve();
    await database.$transaction(async (tx) => {
      await tx.$queryRaw`SELECT FROM quotas WHERE project_id = ${principal.projectId} FOR UPDATE`;
      asked = backUp(principal, volumeId).then(
        () => null,
        (error: unknown) => error,
      );
      await waitFor(() => waiting(1), { what: "the statement waits for the quota" });
      await tx.$executeRawUnsafe(change(volumeId, principal.projectId));
    });
    expect(await asked).toEqual(refusal);
    expect(await leftIn(principal.projectId)).toEqual(left);
  });

  it("of which another request has locked the volume: whoever comes second is refused", async () => {
    const { principal, volumeId } = await addProject();
    let asked: Promise<unknown> = Promise.resolve();
    await database.$transaction(async (tx) => {
      await tx.$queryRaw`SELECT FROM volumes WHERE id = ${volumeId}::uuid FOR UPDATE`;
      asked = backUp(principal, volumeId).catch((error: unknown) => error);
      await waitFor(() => waiting(1), { what: "the statement waits for the volume" });
      await tx.$executeRaw`UPDATE volumes SET status = 'deleting' WHERE id = ${volumeId}::uuid`;
    });
    expect(await asked).toMatchObject({ message: expect.stringContaining('the current status is "deleting"') });
    expect(await leftIn(principal.projectId)).toEqual(none);
  });

  it.each(["straight", "through PgBouncer"])(
    "says who asks, and waits for locks as long as a transaction does; nothing of it stays with the connection (%s)",
    async (how) => {
      let url = databaseUrl;
      if (how !== "straight") url = stack.use(await startPgbouncer(databaseUrl, { dir: inject("servers").dir })).url;
      const requests = openDatabase(url, { work: "request", connectionsMax: 1 });
      stack.defer(() => requests.$disconnect());
      await database.$executeRaw`CREATE TABLE IF NOT EXISTS found (lock_timeout text, actor text)`;
      await database.$executeRawUnsafe(`
        CREATE OR REPLACE FUNCTION find_settings() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          INSERT INTO found VALUES (current_setting('lock_timeout'), current_setting('tephra.actor'));
          RETURN NULL;
        END $$`);
      await database.$executeRaw`
        CREATE OR REPLACE TRIGGER find_settings AFTER UPDATE ON quotas FOR EACH ROW EXECUTE FUNCTION find_settings()`;
      const { principal, volumeId } = await addProject();
      await database.$executeRaw`DELETE FROM found`;
      const { id } = await backUp(principal, volumeId, requests);
      await database.$executeRaw`DROP TRIGGER find_settings ON quotas`;
      const found = await database.$queryRaw<{ lock_timeout: string; actor: string }[]>`SELECT * FROM found`;
      expect(found.map(({ actor, ...rest }) => ({ ...rest, ...JSON.parse(actor) }))).toEqual([
        { lock_timeout: "5s", ...actorOf(principal) },
      ]);
      const [after] = await requests.$queryRaw<unknown[]>`
        SELECT current_setting('lock_timeout') AS lock, coalesce(current_setting('tephra.actor', true), '') AS actor`;
      expect(after).toEqual({ lock: "300ms", actor: "" });
      const told = await database.auditEntry.findMany({ where: { resourceId: { in: [id, volumeId] }, actor: "user" } });
      const { requestId, userId } = principal;
      expect(told.map((entry) => [entry.toStatus, entry.requestId, entry.userId]).sort()).toEqual([
        ["backing-up", requestId, userId],
        ["creating", requestId, userId],
      ]);
    },
  );

  it("is asked for again after a deadlock, in a transaction", async () => {
    const { principal, volumeId } = await addProject();
    await database.$executeRaw`CREATE SEQUENCE attempts`;
    await database.$executeRawUnsafe(`
      CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('attempts') = 1 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF;
        RETURN NULL;
      END $$`);
    await database.$executeRaw`
      CREATE TRIGGER fail_once AFTER INSERT ON backups FOR EACH ROW EXECUTE FUNCTION fail_once()`;
    await backUp(principal, volumeId);
    await database.$executeRaw`DROP TRIGGER fail_once ON backups`;
    expect(await database.$queryRaw`SELECT last_value::int AS attempts FROM attempts`).toEqual([{ attempts: 2 }]);
    expect(await leftIn(principal.projectId)).toEqual(one);
  });
});

const races = 60;
const racers = 6;

it(`whatever many ask for at once: no more than the quota allows, each volume once, and all of each or nothing (seed ${seed})`, {
  timeout: 120_000,
}, async () => {
  const random = new Random(seed);
  for (let race = 0; race < races; race += 1) {
    const { principal, volumeId } = await addProject();
    const { projectId } = principal;
    const volumes = [volumeId, await addVolume(projectId), await addVolume(projectId)];
    const limit = 1 + random.below(3);
    await setQuota(database, config, projectId, { backups: limit });
    const asked = Array.from({ length: racers }, async () => {
      const chosen = volumes[random.below(volumes.length)] ?? volumeId;
      switch (random.below(6)) {
        case 0:
          return database.$executeRaw`
            UPDATE volumes SET status = CASE status WHEN 'available' THEN 'reserved' WHEN 'reserved' THEN 'available' ELSE status END
            WHERE id = ${chosen}::uuid`;
        case 1:
          return database.$executeRaw`
            UPDATE volumes SET size_gib = size_gib + 1, size_bytes = size_bytes + 1 WHERE id = ${chosen}::uuid AND status = 'available'`;
        default:
          return backUp(principal, chosen);
      }
    });
    for (const outcome of await Promise.allSettled(asked)) {
      if (outcome.status === "fulfilled") continue;
      if (!(outcome.reason instanceof InvalidError || outcome.reason instanceof QuotaExceededError))
        throw outcome.reason;
    }
    const [found] = await database.$queryRaw<Record<string, unknown>[]>`SELECT
      (SELECT backups_used FROM quotas WHERE project_id = ${projectId}) AS used,
      (SELECT backup_gigabytes_used FROM quotas WHERE project_id = ${projectId}) AS gigabytes,
      (SELECT count(*)::int FROM volumes WHERE project_id = ${projectId} AND status = 'backing-up') AS marked,
      (SELECT count(DISTINCT volume_id)::int FROM backups WHERE project_id = ${projectId}) AS "different volumes",
      (SELECT count(*)::int FROM operations o JOIN tasks t ON t.operation_id = o.id JOIN backups b ON b.id = o.backup_id
        JOIN volumes v ON v.id = o.volume_id AND v.size_gib = b.size_gib AND v.size_bytes = o.bytes_total
        WHERE o.project_id = ${projectId}) AS started`;
    const backups = await database.backup.findMany({ where: { projectId } });
    const count = backups.length;
    const gigabytes = backups.reduce((sum, { sizeGib }) => sum + sizeGib, 0);
    expect(count, `seed ${seed}, race ${race}`).toBeLessThanOrEqual(limit);
    const wanted = { used: count, gigabytes, marked: count, "different volumes": count, started: count };
    expect(found, `seed ${seed}, race ${race}`).toEqual(wanted);
  }
});
