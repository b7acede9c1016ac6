import { type Config, type RepositoryConfig, repositoryNamed } from "../config.ts";
import { type Database, Prisma } from "../db/database.ts";
import { needToWrite } from "../queue/workers.ts";
import { type KnownWorker, listWorkers } from "./workers.ts";

/** Backups that can be restored, by when they were last verified: within 7 days, within 30, before, never; and those that are damaged. */
export interface Proof {
  week: number;
  month: number;
  older: number;
  never: number;
  damaged: number;
}

export interface RepositoryFacts {
  repository: RepositoryConfig;
  backups: number;
  bytes: number;
  storedBytes: number;
  /** By how many bytes it grows; null: nobody knows yet. */
  storedPerDay: number | null;
  /** How much can still be stored, by the live worker that says the least; null: none says. */
  freeBytes: number | null;
  /** When it is full if it goes on growing so; null: nobody knows, or it does not grow. */
  fullAt: Date | null;
  /** The longest that a live worker that can write to it waited for its answer, in ms. */
  probeMs: number | null;
  /** Of its master keys, those that a live worker has. */
  keyVersions: string[];
  proof: Proof;
  /** Ids of the live workers that can write to it. */
  reachedBy: string[];
  unreachableFrom: { worker: string; why: string }[];
  lastReap: PassRow | null;
  lastRescan: PassRow | null;
}

export interface PassRow {
  id: string;
  state: string;
  createdAt: Date;
}

const age = (from: number, to: number): Prisma.Sql =>
  Prisma.sql`b.verified_at <= now() - ${from} * interval '1 day' AND b.verified_at > now() - ${to} * interval '1 day'`;

/** SQL: the columns of `Proof` over backups `b`. */
const proofColumns = Prisma.sql`
  count(*) FILTER (WHERE b.damage IS NULL AND b.verified_at > now() - interval '7 days')::int AS week,
  count(*) FILTER (WHERE b.damage IS NULL AND ${age(7, 30)})::int AS month,
  count(*) FILTER (WHERE b.damage IS NULL AND b.verified_at <= now() - interval '30 days')::int AS older,
  count(*) FILTER (WHERE b.damage IS NULL AND b.verified_at IS NULL)::int AS never,
  count(*) FILTER (WHERE b.damage IS NOT NULL)::int AS damaged`;

type Sums = Proof & { repository: string; backups: number; bytes: number; stored: number };

const noSums = { backups: 0, bytes: 0, stored: 0, week: 0, month: 0, older: 0, never: 0, damaged: 0 };

/** Of one project, or of all: null. */
export async function sumRepositories(database: Database, projectId: string | null): Promise<Sums[]> {
  return database.$queryRaw<Sums[]>`
    SELECT b.repository, count(*)::int AS backups, coalesce(sum(b.volume_bytes), 0)::float8 AS bytes,
      coalesce(sum(b.stored_bytes), 0)::float8 AS stored, ${proofColumns}
    FROM backups b WHERE b.deleted_at IS NULL AND b.status IN ('available', 'restoring')
      AND ${projectId === null ? Prisma.sql`true` : Prisma.sql`b.project_id = ${projectId}`} GROUP BY b.repository`;
}

/** How much of everything is proven. */
export const proofOf = (sums: readonly Proof[]): Proof => {
  const total = (key: keyof Proof): number => sums.reduce((sum, each) => sum + each[key], 0);
  return {
    week: total("week"),
    month: total("month"),
    older: total("older"),
    never: total("never"),
    damaged: total("damaged"),
  };
};

export const canWriteTo = (worker: KnownWorker, repository: string): boolean =>
  worker.state !== "silent" && worker.reaches.includes(`repository:${repository}`);

/** Bytes that a repository grows by in a day, over the last thirty days: the slope of a line through the last row of each. */
export async function readGrowth(database: Database): Promise<Map<string, number>> {
  const rows = await database.$queryRaw<{ name: string; perDay: number }[]>`
    SELECT key AS name, regr_slope(value::float8, extract(epoch FROM at)::float8 / 86400) AS "perDay" FROM (
      SELECT DISTINCT ON (date_trunc('day', at)) at, stored FROM samples
      WHERE stored IS NOT NULL AND at > now() - interval '30 days' AND at <= now()
      ORDER BY date_trunc('day', at), at DESC) days, jsonb_each_text(stored)
    GROUP BY key HAVING max(at) - min(at) >= interval '1 day'`;
  return new Map(rows.map(({ name, perDay }) => [name, perDay]));
}

const dayMs = 86_400_000;
/** Beyond, a line through thirty days says nothing. */
const farDays = 3_650;

/** `freeBytes` are used up at so many bytes a day. */
export function fullAt({ now, freeBytes, perDay }: { now: number; freeBytes: number | null; perDay: number | null }) {
  if (freeBytes === null || perDay === null || perDay <= 0 || freeBytes / perDay > farDays) return null;
  return new Date(now + (freeBytes / perDay) * dayMs);
}

/** All configured repositories, in the order of the configuration. */
export async function listRepositories(database: Database, config: Config): Promise<RepositoryFacts[]> {
  const [sums, workers, passes, growth] = await Promise.all([
    sumRepositories(database, null),
    listWorkers(database, config),
    database.$queryRaw<(PassRow & { kind: string; repository: string })[]>`
      SELECT DISTINCT ON (kind, input ->> 'repository') kind, input ->> 'repository' AS repository, id, state, created_at AS "createdAt"
      FROM operations WHERE kind IN ('repository-reap', 'repository-rescan')
      ORDER BY kind, input ->> 'repository', created_at DESC`,
    readGrowth(database),
  ]);
  const live = workers.filter(({ state }) => state !== "silent");
  const now = Date.now();
  return config.repositories.map((repository) => {
    const { name } = repository;
    const sum = sums.find((each) => each.repository === name) ?? noSums;
    const last = (kind: string): PassRow | null =>
      passes.find((pass) => pass.kind === kind && pass.repository === name) ?? null;
    const cards = live.flatMap(({ places }) => places[needToWrite(name)] ?? []);
    const free = cards.flatMap(({ free_bytes: bytes }) => bytes ?? []);
    const freeBytes = free.length === 0 ? null : Math.min(...free);
    return {
      repository,
      backups: sum.backups,
      bytes: sum.bytes,
      storedBytes: sum.stored,
      storedPerDay: growth.get(name) ?? null,
      freeBytes,
      fullAt: fullAt({ now, freeBytes, perDay: growth.get(name) ?? null }),
      probeMs: cards.length === 0 ? null : Math.max(...cards.map(({ ms }) => ms)),
      keyVersions: [...new Set(cards.flatMap(({ keys }) => keys ?? []))],
      proof: proofOf([sum]),
      reachedBy: workers.filter((worker) => canWriteTo(worker, name)).map(({ id }) => id),
      unreachableFrom: live.flatMap(({ id, unreachable }) => {
        const why = unreachable[`repository:${name}`];
        return why === undefined ? [] : [{ worker: id, why }];
      }),
      lastReap: last("repository-reap"),
      lastRescan: last("repository-rescan"),
    };
  });
}

export interface ProjectShare {
  projectId: string;
  backups: number;
  storedBytes: number;
}

/** One repository, and the ten projects that store most in it. @throws NotFoundError */
export async function getRepository(
  database: Database,
  config: Config,
  name: string,
): Promise<RepositoryFacts & { projects: ProjectShare[] }> {
  const { name: known } = repositoryNamed(config, name);
  const facts = (await listRepositories(database, config)).find(({ repository }) => repository.name === known);
  if (!facts) throw new Error(`repository ${name} is not configured`);
  const projects = await database.$queryRaw<ProjectShare[]>`
    SELECT project_id AS "projectId", count(*)::int AS backups, coalesce(sum(stored_bytes), 0)::float8 AS "storedBytes"
    FROM backups WHERE repository = ${known} AND deleted_at IS NULL AND status IN ('available', 'restoring')
    GROUP BY project_id ORDER BY 3 DESC, project_id LIMIT 10`;
  return { ...facts, projects };
}
