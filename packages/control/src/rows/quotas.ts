import type { Config } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { inTransaction } from "../db/database.ts";
import { QuotaExceededError, QuotaInUseError, type QuotaLimit, type QuotaResource } from "../errors.ts";
import { Prisma } from "../generated/client.ts";

/** Alphabetical: the order in which Cinder checks them, so gigabytes are reported before counts. */
const resources = [
  "backup_gigabytes",
  "backups",
  "gigabytes",
  "groups",
  "snapshots",
  "volumes",
] as const satisfies readonly QuotaResource[];

/** Cinder's defaults for limits that the configuration does not have. */
const moreDefaults = { volumes_of_type: -1, snapshots_of_type: -1, gigabytes_of_type: -1 } as const;

const limited: readonly QuotaLimit[] = [
  ...resources,
  "per_volume_gigabytes",
  "volumes_of_type",
  "snapshots_of_type",
  "gigabytes_of_type",
];

/** The limits that a request for a resource is checked against. Every volume is of the same type. */
const limitsOf: Readonly<Record<QuotaResource, readonly QuotaLimit[]>> = {
  backup_gigabytes: ["backup_gigabytes"],
  backups: ["backups"],
  gigabytes: ["gigabytes", "gigabytes_of_type"],
  groups: ["groups"],
  snapshots: ["snapshots", "snapshots_of_type"],
  volumes: ["volumes", "volumes_of_type"],
};

export type QuotaAmounts = Partial<Record<QuotaResource, number>>;
export type QuotaLimits = Record<QuotaLimit, number>;

export interface QuotaLine {
  limit: number;
  inUse: number;
}

type QuotaRow = Record<QuotaLimit | `${QuotaResource}_used`, number | null>;

/** Locks a project's quota before it is known whether amounts change. First in the lock order. */
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

/** The class whose limits apply to every project without limits of its own. */
const defaultClass = "default";

const configuredLimits = (config: Config): QuotaLimits => ({ ...config.quotas, ...moreDefaults });

/** A class's limits; those it does not set come from the configuration. */
export async function getQuotaClass(
  database: Database | Transaction,
  config: Config,
  name: string,
): Promise<QuotaLimits> {
  const rows = await database.$queryRaw<Partial<QuotaLimits>[]>`SELECT * FROM quota_classes WHERE name = ${name}`;
  const defaults = configuredLimits(config);
  return Object.fromEntries(limited.map((r) => [r, rows[0]?.[r] ?? defaults[r]])) as QuotaLimits;
}

/** Limits of projects without their own. */
export const getDefaultQuota = (database: Database | Transaction, config: Config): Promise<QuotaLimits> =>
  getQuotaClass(database, config, defaultClass);

/** Changes the given limits of a class; the others stay. */
export async function setQuotaClass(
  database: Database,
  config: Config,
  name: string,
  limits: Partial<QuotaLimits>,
): Promise<QuotaLimits> {
  const wanted = limited.filter((r) => limits[r] !== undefined);
  await inTransaction(database, async (tx) => {
    await tx.$executeRaw`INSERT INTO quota_classes (name) VALUES (${name}) ON CONFLICT DO NOTHING`;
    if (wanted.length === 0) return;
    await tx.$executeRaw`UPDATE quota_classes SET ${assignments(wanted, limits)} WHERE name = ${name}`;
  });
  return getQuotaClass(database, config, name);
}

function assignments(wanted: readonly QuotaLimit[], limits: Partial<QuotaLimits>): Prisma.Sql {
  return Prisma.join(
    wanted.map((r) => Prisma.sql`${Prisma.raw(`${r} = `)}${limits[r] ?? -1}::int`),
    ", ",
  );
}

function increments(amounts: QuotaAmounts, sign: 1 | -1): Prisma.Sql {
  const parts = resources
    .filter((r) => amounts[r] !== undefined)
    .map((r) => Prisma.sql`${Prisma.raw(`${r}_used = GREATEST(0, ${r}_used + `)}${sign * (amounts[r] ?? 0)}::int)`);
  return Prisma.join(parts, ", ");
}

/** A requested amount, its limit, and what is used against it; null: nothing ever counts against it. */
interface Demand {
  limit: QuotaLimit;
  amount: number;
  counted: QuotaResource | null;
}

/** In the order in which they are checked. */
function demandsOf(amounts: QuotaAmounts): Demand[] {
  const each = amounts.volumes === undefined ? 0 : (amounts.gigabytes ?? 0);
  const demands = resources.flatMap((counted) => {
    const amount = amounts[counted];
    return amount === undefined ? [] : limitsOf[counted].map((limit): Demand => ({ limit, amount, counted }));
  });
  return each > 0 ? [{ limit: "per_volume_gigabytes", amount: each, counted: null }, ...demands] : demands;
}

/** SQL: whether every amount fits under its limit; a negative limit means unlimited. */
function fits(config: Config, amounts: QuotaAmounts): Prisma.Sql {
  const defaults = configuredLimits(config);
  const parts = demandsOf(amounts).map(({ limit: name, amount, counted }) => {
    const ofClass = Prisma.sql`(SELECT ${Prisma.raw(`c.${name}`)} FROM quota_classes c WHERE c.name = ${defaultClass})`;
    const limit = Prisma.sql`coalesce(${Prisma.raw(name)}, ${ofClass}, ${defaults[name]}::int)`;
    const used = counted ? Prisma.raw(`${counted}_used`) : Prisma.sql`0`;
    return Prisma.sql`(${limit} < 0 OR ${used} + ${amount}::int <= ${limit})`;
  });
  return Prisma.join(parts, " AND ");
}

/**
 * SQL: the statement that reserves `amounts` if they fit; it changes no row if they do not, or the project has no row yet.
 *
 * @param said a condition that holds, and does something before the row is locked (changeRows)
 */
export const quotaReservation = (
  config: Config,
  projectId: string,
  amounts: QuotaAmounts,
  said: Prisma.Sql = Prisma.sql`true`,
): Prisma.Sql =>
  Prisma.sql`UPDATE quotas SET ${increments(amounts, 1)} WHERE project_id = ${projectId} AND ${fits(config, amounts)} AND ${said}`;

/**
 * Reserves `amounts` (counts, GiB) from the project's quota. First in the lock order: the row stays locked until commit, so concurrent
 * requests cannot exceed a limit. One statement where the amounts fit.
 *
 * @throws QuotaExceededError naming the first resource, alphabetically, that is over its limit
 */
export async function reserveQuota(
  tx: Transaction,
  config: Config,
  projectId: string,
  amounts: QuotaAmounts,
): Promise<void> {
  const take = quotaReservation(config, projectId, amounts);
  if ((await tx.$executeRaw(take)) === 1) return;
  const row = await lockRow(tx, projectId);
  const defaults = await getDefaultQuota(tx, config);
  for (const { limit: name, amount: requested, counted } of demandsOf(amounts)) {
    const limit = row[name] ?? defaults[name];
    const used = counted ? (row[`${counted}_used`] ?? 0) : 0;
    if (limit >= 0 && used + requested > limit) throw new QuotaExceededError(name, { requested, limit, used });
  }
  await tx.$executeRaw(take);
}

/** Whether the project could reserve `amounts` now; nothing is reserved. @throws QuotaExceededError as reserveQuota */
export async function assertQuota(
  database: Database,
  config: Config,
  projectId: string,
  amounts: QuotaAmounts,
): Promise<void> {
  const lines = await getQuota(database, config, projectId);
  for (const { limit: name, amount: requested, counted } of demandsOf(amounts)) {
    const { limit, inUse } = lines[name];
    const used = counted ? inUse : 0;
    if (limit >= 0 && used + requested > limit) throw new QuotaExceededError(name, { requested, limit, used });
  }
}

/** Usage that counts against a limit. */
function usedOf(row: QuotaRow, limit: QuotaLimit): number {
  const counted = resources.find((r) => limitsOf[r].includes(limit));
  return counted === undefined ? 0 : (row[`${counted}_used`] ?? 0);
}

/** Locks the quota rows of several projects, always in the same order. */
export async function lockQuotas(tx: Transaction, projectIds: readonly string[]): Promise<void> {
  for (const projectId of [...new Set(projectIds)].sort()) await lockRow(tx, projectId);
}

/** Charges `amounts` regardless of the limits. The row is locked. */
export async function chargeQuota(tx: Transaction, projectId: string, amounts: QuotaAmounts): Promise<void> {
  await tx.$executeRaw`UPDATE quotas SET ${increments(amounts, 1)} WHERE project_id = ${projectId}`;
}

/** Releases `amounts`; usage never falls below zero. */
export async function releaseQuota(tx: Transaction, projectId: string, amounts: QuotaAmounts): Promise<void> {
  await tx.$executeRaw`UPDATE quotas SET ${increments(amounts, -1)} WHERE project_id = ${projectId}`;
}

/** Effective limits and usage, per resource. A project never seen before has the defaults and no usage. */
export async function getQuota(
  database: Database,
  config: Config,
  projectId: string,
): Promise<Record<QuotaLimit, QuotaLine>> {
  const rows = await database.$queryRaw<QuotaRow[]>`SELECT * FROM quotas WHERE project_id = ${projectId}`;
  const row = rows[0];
  const defaults = await getDefaultQuota(database, config);
  const lines = limited.map((r) => [r, { limit: row?.[r] ?? defaults[r], inUse: row ? usedOf(row, r) : 0 }] as const);
  return Object.fromEntries(lines) as Record<QuotaLimit, QuotaLine>;
}

/** Limits and usage of each project that has a row, and those of one that has none. */
export async function listQuotas(
  database: Database,
  config: Config,
): Promise<{ projects: Map<string, Record<QuotaResource, QuotaLine>>; defaults: Record<QuotaResource, QuotaLine> }> {
  const rows = await database.$queryRaw<(QuotaRow & { project_id: string })[]>`SELECT * FROM quotas`;
  const limits = await getDefaultQuota(database, config);
  const linesOf = (row: QuotaRow | null) => {
    const lines = resources.map((r) => [r, { limit: row?.[r] ?? limits[r], inUse: row ? usedOf(row, r) : 0 }] as const);
    return Object.fromEntries(lines) as Record<QuotaResource, QuotaLine>;
  };
  return { projects: new Map(rows.map((row) => [row.project_id, linesOf(row)])), defaults: linesOf(null) };
}

export interface NearQuota {
  project: string;
  /** Those of its limits that are nearly reached. */
  lines: (QuotaLine & { resource: QuotaResource })[];
}

/** Projects that use this share of a limit, or more: all of them, or one. Without a limit, or with one of 0, nothing is near it. */
export async function nearQuotas(
  database: Database,
  config: Config,
  { projectId, share }: { projectId: string | null; share: number },
): Promise<NearQuota[]> {
  const asked = projectId === null ? Prisma.sql`true` : Prisma.sql`project_id = ${projectId}`;
  const rows = await database.$queryRaw<(QuotaRow & { project_id: string })[]>`
    SELECT * FROM quotas WHERE ${asked} ORDER BY project_id`;
  const defaults = await getDefaultQuota(database, config);
  return rows.flatMap((row) => {
    const lines = resources
      .map((resource) => ({ resource, limit: row[resource] ?? defaults[resource], inUse: usedOf(row, resource) }))
      .filter(({ limit, inUse }) => limit > 0 && inUse >= share * limit);
    return lines.length === 0 ? [] : [{ project: row.project_id, lines }];
  });
}

/**
 * Changes the given limits; the others stay.
 *
 * @throws QuotaInUseError when a limit would fall below what is in use
 */
export async function setQuota(
  database: Database,
  config: Config,
  projectId: string,
  limits: Partial<QuotaLimits>,
): Promise<Record<QuotaLimit, QuotaLine>> {
  await inTransaction(database, async (tx) => {
    const row = await lockRow(tx, projectId);
    const wanted = limited.filter((r) => limits[r] !== undefined);
    for (const resource of wanted) {
      const limit = limits[resource] ?? -1;
      const used = usedOf(row, resource);
      if (limit >= 0 && limit < used) throw new QuotaInUseError(resource, { limit, used });
    }
    if (wanted.length === 0) return;
    await tx.$executeRaw`UPDATE quotas SET ${assignments(wanted, limits)} WHERE project_id = ${projectId}`;
  });
  return getQuota(database, config, projectId);
}

/** Removes a project's own limits: the defaults apply again. Its usage stays counted. */
export async function resetQuota(database: Database, projectId: string): Promise<void> {
  const none = Prisma.join(
    limited.map((r) => Prisma.raw(`${r} = NULL`)),
    ", ",
  );
  await database.$executeRaw`UPDATE quotas SET ${none} WHERE project_id = ${projectId}`;
}
