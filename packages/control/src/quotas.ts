import type { Config } from "./config.ts";
import type { Database, Transaction } from "./database.ts";
import { inTransaction } from "./database.ts";
import { InvalidError, QuotaExceededError, type QuotaResource } from "./errors.ts";
import { Prisma } from "./generated/client.ts";

/** Alphabetical: the order in which Cinder examines them, so gigabytes are reported before counts. */
const resources = [
  "backup_gigabytes",
  "backups",
  "gigabytes",
  "snapshots",
  "volumes",
] as const satisfies readonly QuotaResource[];

export type QuotaAmounts = Partial<Record<QuotaResource, number>>;

export interface QuotaLine {
  limit: number;
  inUse: number;
}

type QuotaRow = Record<QuotaResource | `${QuotaResource}_used`, number | null>;

/** Locks a project's quota, where something must be locked before it is known whether amounts change. First in the lock order. */
export async function lockQuota(tx: Transaction, projectId: string): Promise<void> {
  await lockRow(tx, projectId);
}

async function lockRow(tx: Transaction, projectId: string): Promise<QuotaRow> {
  await tx.$executeRaw`INSERT INTO quotas (project_id) VALUES (${projectId}) ON CONFLICT DO NOTHING`;
  const rows = await tx.$queryRaw<QuotaRow[]>`SELECT * FROM quotas WHERE project_id = ${projectId} FOR UPDATE`;
  const row = rows[0];
  if (!row) throw new Error(`quota row of project ${projectId} vanished`);
  return row;
}

const limitOf = (config: Config, row: QuotaRow | undefined, resource: QuotaResource): number =>
  row?.[resource] ?? config.quotas[resource];

function increments(amounts: QuotaAmounts, sign: 1 | -1): Prisma.Sql {
  const parts = resources
    .filter((r) => amounts[r] !== undefined)
    .map((r) => Prisma.sql`${Prisma.raw(`${r}_used = GREATEST(0, ${r}_used + `)}${sign * (amounts[r] ?? 0)}::int)`);
  return Prisma.join(parts, ", ");
}

/** SQL: every amount fits under its limit, or its limit is negative, which means none. */
function fits(config: Config, amounts: QuotaAmounts): Prisma.Sql {
  const parts = resources
    .filter((r) => amounts[r] !== undefined)
    .map((r) => {
      const limit = Prisma.sql`coalesce(${Prisma.raw(r)}, ${config.quotas[r]}::int)`;
      return Prisma.sql`(${limit} < 0 OR ${Prisma.raw(`${r}_used`)} + ${amounts[r] ?? 0}::int <= ${limit})`;
    });
  return Prisma.join(parts, " AND ");
}

/**
 * Takes `amounts` (counts, GiB) from the project's quota. First in the lock order: the row stays locked until commit,
 * so concurrent requests cannot overrun a limit. One statement where the amounts fit.
 *
 * @throws QuotaExceededError naming the first resource, alphabetically, that is over its limit
 */
export async function reserveQuota(
  tx: Transaction,
  config: Config,
  projectId: string,
  amounts: QuotaAmounts,
): Promise<void> {
  const take = Prisma.sql`UPDATE quotas SET ${increments(amounts, 1)} WHERE project_id = ${projectId} AND ${fits(config, amounts)}`;
  if ((await tx.$executeRaw(take)) === 1) return;
  const row = await lockRow(tx, projectId);
  for (const resource of resources) {
    const requested = amounts[resource];
    if (requested === undefined) continue;
    const limit = limitOf(config, row, resource);
    const used = row[`${resource}_used`] ?? 0;
    if (limit >= 0 && used + requested > limit) throw new QuotaExceededError(resource, { requested, limit, used });
  }
  await tx.$executeRaw(take);
}

/** Locks the quota rows of several projects, in one order everywhere. */
export async function lockQuotas(tx: Transaction, projectIds: readonly string[]): Promise<void> {
  for (const projectId of [...new Set(projectIds)].sort()) await lockRow(tx, projectId);
}

/** Counts what is there whatever the limits say. The row is locked. */
export async function chargeQuota(tx: Transaction, projectId: string, amounts: QuotaAmounts): Promise<void> {
  await tx.$executeRaw`UPDATE quotas SET ${increments(amounts, 1)} WHERE project_id = ${projectId}`;
}

/** Gives `amounts` back; never below zero. */
export async function releaseQuota(tx: Transaction, projectId: string, amounts: QuotaAmounts): Promise<void> {
  await tx.$executeRaw`UPDATE quotas SET ${increments(amounts, -1)} WHERE project_id = ${projectId}`;
}

/** Limits in force and what is in use, per resource. A project never seen has the defaults and uses nothing. */
export async function getQuota(
  database: Database,
  config: Config,
  projectId: string,
): Promise<Record<QuotaResource, QuotaLine>> {
  const rows = await database.$queryRaw<QuotaRow[]>`SELECT * FROM quotas WHERE project_id = ${projectId}`;
  const row = rows[0];
  const lines = resources.map((r) => [r, { limit: limitOf(config, row, r), inUse: row?.[`${r}_used`] ?? 0 }] as const);
  return Object.fromEntries(lines) as Record<QuotaResource, QuotaLine>;
}

/**
 * Changes the limits named; the others stay.
 *
 * @throws InvalidError when a limit would fall below what is in use
 */
export async function setQuota(
  database: Database,
  config: Config,
  projectId: string,
  limits: QuotaAmounts,
): Promise<Record<QuotaResource, QuotaLine>> {
  await inTransaction(database, async (tx) => {
    const row = await lockRow(tx, projectId);
    const wanted = resources.filter((r) => limits[r] !== undefined);
    for (const resource of wanted) {
      const limit = limits[resource] ?? -1;
      const used = row[`${resource}_used`] ?? 0;
      if (limit >= 0 && limit < used) {
        const text = `Quota ${resource} limit must be equal or greater than existing resources. Current usage is ${used} and the requested limit is ${limit}.`;
        throw new InvalidError("input", text);
      }
    }
    if (wanted.length === 0) return;
    const sets = wanted.map((r) => Prisma.sql`${Prisma.raw(`${r} = `)}${limits[r] ?? -1}::int`);
    await tx.$executeRaw`UPDATE quotas SET ${Prisma.join(sets, ", ")} WHERE project_id = ${projectId}`;
  });
  return getQuota(database, config, projectId);
}
