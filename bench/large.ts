import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Config,
  checkRestore,
  countAlerts,
  countProtection,
  type Database,
  getQuota,
  listAudit,
  listBackups,
  listMessages,
  listOperations,
  listProtection,
  listSnapshots,
  listVolumes,
  type Page,
  type Principal,
  readBackupChain,
  readOverview,
  readQueue,
  requestBackup,
  search,
} from "@tephra/control";
import { beginTerm, loadConfig, openDatabase, openLog, openMetrics, reconcile } from "@tephra/control/process";
import { startServices } from "../scripts/services.ts";
import { dispatchMsMax, handOut, needs, register } from "./dispatch.ts";
import { type Measurement, measured, median, quantile, type Say, timesOf } from "./measurement.ts";

/** How much an installation holds. Projects share everything evenly. */
interface Size {
  projects: number;
  backups: number;
  endedTasks: number;
  auditRows: number;
  readyTasks: number;
}

const small: Size = { projects: 50, backups: 1_000, endedTasks: 1_000, auditRows: 1_000, readyTasks: 200 };
const large: Size = {
  ...{ projects: 5_000, backups: 100_000, endedTasks: 1_000_000 },
  ...{ auditRows: 1_000_000, readyTasks: 20_000 },
};
/** Times with the large installation, in those with the small one. */
const growthMax = 1.2;
const runs = 60;
const rounds = 3;
/** What counts everything that there is may take longer in a large installation, but no longer than somebody likes to wait. */
const msMax: Readonly<Record<string, number>> = {
  "the overview": 150,
  "50 volumes by how protected they are": 150,
  "the first scrape of the metrics": 200,
  "the queue": 200,
  "a search by name": 30,
  "a search by id": 30,
  "the check of a restore": 100,
  "the chain of a backup": 50,
  "a pass of the reconciler, the first of its term": 200,
  "a pass that forgets": 250,
};
/** Of those, in each round. */
const fewRuns = 10;

/**
 * What lists, a scrape of the metrics, a pass of the reconciler, a quota's check, the hand-out of a freed slot and retention take in a large
 * installation, and how much more that is than in a small one.
 */
export async function measureLarge(say: Say): Promise<Measurement[]> {
  await using stack = new AsyncDisposableStack();
  const [one, other] = [stack.use(await build(small, "small", say)), stack.use(await build(large, "large", say))];
  // In turn: whatever else the machine does slows down both.
  for (let round = 0; round < rounds; round += 1) {
    for (const key of Object.keys(one.asked)) {
      say(`${key}, round ${round + 1} of ${rounds}`);
      for (const size of [one, other]) await size.ask(key);
    }
  }
  for (const size of [one, other]) await size.askLast();
  const { times: few } = one;
  const { times: many } = other;
  const times = [one, other].flatMap(({ name: size, times: all }) =>
    [...all].map(([name, values]) => measured(name, [median(values)], { unit: "ms", note: size })),
  );
  const ratios = [...few]
    .filter(([name]) => !Object.hasOwn(msMax, name))
    .map(([name, times]) =>
      measured(`${name}, large in small`, [median(many.get(name) ?? []) / median(times)], {
        unit: "x",
        atMost: growthMax,
      }),
    );
  const bounded = Object.entries(msMax).map(([name, atMost]) =>
    measured(`${name}, large, against its limit`, [median(many.get(name) ?? [])], { unit: "ms", atMost }),
  );
  const handed = many.get(dispatchName) ?? [];
  const worst = measured("the hand-out of a freed slot, p99, large", [quantile(handed, 0.99)], {
    unit: "ms",
    atMost: dispatchMsMax,
  });
  return [...times, ...ratios, ...bounded, worst];
}

const dispatchName = "the hand-out of a freed slot";

interface Installation extends AsyncDisposable {
  name: string;
  asked: Readonly<Record<string, unknown>>;
  /** What each of them took, in ms. */
  times: Map<string, number[]>;
  ask(key: string): Promise<void>;
  /** What changes everything that there is. */
  askLast(): Promise<void>;
}

async function build(size: Size, name: string, say: Say): Promise<Installation> {
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-bench-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const services = await startServices({ dataDir: dir });
  stack.defer(() => services.stop());
  const database = openDatabase(services.databaseUrl);
  stack.defer(() => database.$disconnect());
  const config = loadConfig({
    DATABASE_URL: services.databaseUrl,
    REDIS_URL: services.redisUrl,
    TEPHRA_DATA_DIR: dir,
  });
  say(`filling a ${name} installation`);
  const filler = openDatabase(services.databaseUrl, { work: "script" });
  await fill(filler, size).finally(() => filler.$disconnect());
  await register(database);
  // A worker that falls silent has every pass end operations.
  const beats = setInterval(() => void register(database).catch(() => {}), config.worker.heartbeat_ms);
  stack.defer(() => clearInterval(beats));
  const asked = await questions(database, config, size);
  const times = new Map<string, number[]>();
  const add = (key: string, values: readonly number[]): void =>
    void times.set(key, [...(times.get(key) ?? []), ...values]);
  const owned = stack.move();
  return {
    ...{ name, asked, times },
    async ask(key) {
      const work = asked[key];
      if (work) add(key, await timesOf(Object.hasOwn(msMax, key) ? fewRuns : runs, work));
    },
    async askLast() {
      say(`handing out slots in the ${name} one`);
      add(dispatchName, (await handOut(database, config, runs * rounds)).times);
      say(`forgetting all that has ended in the ${name} one`);
      const ager = openDatabase(services.databaseUrl, { work: "script" });
      await age(ager).finally(() => ager.$disconnect());
      add("a pass that forgets", await measureForgetting(database, asked["a pass of the reconciler"]));
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Everything that has an end becomes older than it is kept; in parts, since a connection that is silent for half a minute is given up. */
async function age(database: Database): Promise<void> {
  const columns = { operations: "finished_at", audit: "at", messages: "created_at" };
  for (const [table, column] of Object.entries(columns)) {
    for (let part = 0; part < 16; part += 1) {
      await database.$executeRawUnsafe(
        `UPDATE ${table} SET ${column} = ${column} - interval '100 days' WHERE abs(hashtext(id::text)) % 16 = ${part}`,
      );
    }
    await database.$executeRawUnsafe(`VACUUM ANALYZE ${table}`);
  }
}

/** Each begins with everything due, and more to forget than one may, as long as there is as much. */
async function measureForgetting(database: Database, pass: (() => Promise<unknown>) | undefined): Promise<number[]> {
  const times: number[] = [];
  for (let run = 0; run < fewRuns * rounds; run += 1) {
    await database.$executeRaw`UPDATE schedules SET ran_at = now() - interval '2 hours' WHERE name LIKE 'forget-%'`;
    times.push(...(await timesOf(1, async () => pass?.())));
  }
  return times;
}

/** What people and programs ask again and again. */
async function questions(
  database: Database,
  config: Config,
  size: Size,
): Promise<Record<string, () => Promise<unknown>>> {
  const log = openLog({ log_level: "silent", hostName: "bench" }, "bench");
  const openAsTheApi = () =>
    openMetrics(
      database,
      config,
      () => countProtection(database, config),
      (volumes) => countAlerts({ database, config, volumes }),
    );
  const metrics = openAsTheApi();
  const term = beginTerm();
  const member: Principal = { userId: "u", projectId: "p7", roles: [], isAdmin: false, requestId: "req-bench" };
  const admin = { ...member, isAdmin: true };
  const sort = [{ key: "createdAt", direction: "desc" }] as const;
  const page: Page<"createdAt"> = { sort, limit: 50, offset: 0 };
  const fields = ["id", "name", "status", "createdAt", "metadata", "hasDependents"] as const;
  const everything = { fields, filters: [], allProjects: true, withCount: false, page };
  const free = await database.volume.findMany({
    where: { projectId: "p7", status: "available" },
    select: { id: true },
  });
  const volumeIds = free.map(({ id }) => id);
  const request = {
    ...{ name: null, description: null, metadata: {}, availabilityZone: null, snapshotId: null, container: null },
    ...{ incremental: false, force: false },
  };
  const [operation] = await listOperations(database, member, { limit: 1 });
  const filtered = (column: "status" | "volumeId", value: string) => [{ column, value, like: false }] as const;
  const backupId = (await database.backup.findFirstOrThrow({ select: { id: true } })).id;
  return {
    "50 backups of a project": () => listBackups(database, member, { ...everything, allProjects: false }),
    "50 backups of all projects": () => listBackups(database, admin, everything),
    "backups that have failed, of all projects": () =>
      listBackups(database, admin, { ...everything, filters: filtered("status", "error") }),
    "backups of a volume": () =>
      listBackups(database, admin, { ...everything, filters: filtered("volumeId", volumeIds[0] ?? "") }),
    "50 volumes of all projects": () =>
      listVolumes(database, admin, { filter: {}, allProjects: true, withCount: false, page }),
    "50 volumes of a project": () =>
      listVolumes(database, member, { filter: {}, allProjects: false, withCount: false, page }),
    "50 snapshots of all projects": () =>
      listSnapshots(database, admin, { filter: {}, allProjects: true, withCount: false, page }),
    "50 messages": () => listMessages(database, member, { filter: {}, page }),
    "50 volumes by how protected they are": () => listProtection(database, config, admin, { sort: "age", limit: 50 }),
    // A project of the small installation has no more.
    "6 operations of a project": () => listOperations(database, member, { limit: 6 }),
    "50 operations of all projects": () => listOperations(database, admin, { limit: 50 }),
    "50 queued operations": () => listOperations(database, admin, { limit: 50, states: ["queued"] }),
    "the overview": () => readOverview(database, config, admin),
    "the queue": () => readQueue(database, config, admin),
    "a search by name": () => search(database, admin, "back"),
    "a search by id": () => search(database, member, backupId.slice(0, 8)),
    "the check of a restore": () => checkRestore(database, config, admin, { backupId, volumeId: null, bytes: null }),
    "the chain of a backup": () => readBackupChain(database, admin, backupId),
    "50 audit entries": () => listAudit(database, { limit: 50 }),
    "audit entries of an operation": () => listAudit(database, { limit: 50, operationId: operation?.id ?? "" }),
    "audit entries of a project that has few": () => listAudit(database, { limit: 50, projectId: "p0-few" }),
    "a scrape of the metrics": () => metrics.render(),
    "the first scrape of the metrics": () => openAsTheApi().render(),
    "a project's quota": () => getQuota(database, config, "p7"),
    "the acceptance of a backup": async () => {
      const volumeId = volumeIds.pop();
      if (volumeId === undefined) throw new Error(`a project of ${size.projects} has too few volumes`);
      await requestBackup(database, config, member, { ...request, volumeId });
    },
    "a pass of the reconciler": () => reconcile({ database, config, log, afterOutage: false, term }),
    "a pass of the reconciler, the first of its term": () =>
      reconcile({ database, config, log, afterOutage: false, term: beginTerm() }),
  };
}

/** Enough volumes of the project that asks for backups. */
const volumesAsked = runs * rounds;

const audited = ["volumes", "backups", "snapshots", "operations"];

async function fill(database: Database, size: Size): Promise<void> {
  const { projects, backups, endedTasks, auditRows, readyTasks } = size;
  // The rows of the audit log are added by themselves.
  for (const table of audited) await database.$executeRawUnsafe(`ALTER TABLE ${table} DISABLE TRIGGER USER`);
  await database.$executeRaw`
    INSERT INTO quotas (project_id, volumes, backups, gigabytes, backup_gigabytes, backups_used, backup_gigabytes_used)
    SELECT 'p' || n, -1, -1, -1, -1, 20, 20 FROM generate_series(0, ${projects - 1}::int) n`;
  await database.$executeRaw`
    INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone, created_at)
    SELECT md5('volume ' || n)::uuid, CASE WHEN n < ${volumesAsked} THEN 'p7' ELSE 'p' || n % ${projects} END, 'u', 'volume', 'available', 1, 1048576,
      'files', 'nova', now() - n * interval '1 second' FROM generate_series(0, ${backups + volumesAsked - 1}::int) n`;
  await database.$executeRaw`
    INSERT INTO backups (id, project_id, user_id, volume_id, name, status, size_gib, object_count, repository, data_timestamp, created_at)
    SELECT gen_random_uuid(), v.project_id, 'u', v.id, 'backup', CASE WHEN n < 20 THEN 'error' ELSE 'available' END, 1, 1, 'main', now(),
      now() - n * interval '1 second'
    FROM generate_series(0, ${backups - 1}::int) n JOIN volumes v ON v.id = md5('volume ' || n + ${volumesAsked})::uuid`;
  await database.$executeRaw`
    INSERT INTO snapshots (id, project_id, user_id, volume_id, name, status, size_gib, size_bytes, created_at)
    SELECT gen_random_uuid(), project_id, 'u', id, 'snapshot', 'available', 1, size_bytes, created_at FROM volumes`;
  await database.$executeRaw`
    INSERT INTO messages (id, project_id, request_id, event_id, user_message, message_level, resource_type, resource_uuid, created_at)
    SELECT gen_random_uuid(), project_id, 'r', 'e', 'm', 'ERROR', 'VOLUME_BACKUP', id, created_at FROM backups`;
  await addOperations(database, { state: "succeeded", tasks: endedTasks, projects, perOperation: 10 });
  await addOperations(database, { state: "ready", tasks: readyTasks, projects, perOperation: 1 });
  const step = 100_000;
  for (let at = 0; at < auditRows; at += step) {
    await database.$executeRaw`
      INSERT INTO audit (at, resource, resource_id, project_id, operation_id, from_status, to_status, actor)
      SELECT now() - n * interval '1 second', 'backup', gen_random_uuid(), 'p' || n % ${projects}, gen_random_uuid(), 'creating', 'available', 'worker'
      FROM generate_series(${at}::int, ${Math.min(auditRows, at + step) - 1}::int) n`;
  }
  // The oldest ones, of a project that has no others.
  await database.$executeRaw`
    UPDATE audit SET project_id = 'p0-few' WHERE id IN (SELECT id FROM audit ORDER BY id LIMIT 20)`;
  for (const table of audited) await database.$executeRawUnsafe(`ALTER TABLE ${table} ENABLE TRIGGER USER`);
  for (const table of [...audited, "tasks", "quotas", "audit", "messages"])
    await database.$executeRawUnsafe(`VACUUM ANALYZE ${table}`);
}

async function addOperations(
  database: Database,
  {
    state,
    tasks,
    projects,
    perOperation,
  }: { state: "ready" | "succeeded"; tasks: number; projects: number; perOperation: number },
): Promise<void> {
  const step = 2_000;
  const ended = state === "succeeded";
  for (let at = 0; at < tasks / perOperation; at += step) {
    const last = Math.min(tasks / perOperation, at + step) - 1;
    await database.$executeRaw`
      WITH o AS (
        INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at, started_at, finished_at)
        SELECT gen_random_uuid(), 'backup-create', ${ended ? state : "queued"}, 'p' || n % ${projects}, 'u', 'r', at,
          CASE WHEN ${ended} THEN at END, CASE WHEN ${ended} THEN at END
        FROM generate_series(${at}::int, ${last}::int) n CROSS JOIN LATERAL (SELECT now() - n * interval '1 second' AS at) t RETURNING *
      )
      INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, needs, bytes_done, started_at, finished_at)
      SELECT gen_random_uuid(), o.id, ${ended ? "copy" : "plan-backup"}, n, ${state}, ${ended ? 3 : 4}, o.project_id, o.created_at,
        ${needs}::text[], 0, o.started_at, o.finished_at
      FROM o CROSS JOIN generate_series(0, ${perOperation - 1}::int) n`;
  }
}
