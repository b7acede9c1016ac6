import type { Logger } from "pino";
import type { Database } from "./database.ts";

/** What the programs know of one table: its name and those of its columns. */
interface KnownTable {
  name: string;
  columns: string[];
}

interface Model {
  dbName: string | null;
  fields: { name: string; kind: string; dbName?: string }[];
}

/** Tables and columns that this version works with, according to its generated client. */
function knownTables(database: Database): KnownTable[] {
  const { models } = (database as unknown as { _runtimeDataModel: { models: Record<string, Model> } })
    ._runtimeDataModel;
  return Object.entries(models).map(([model, { dbName, fields }]) => ({
    name: dbName ?? model,
    columns: fields.filter((field) => field.kind !== "object").map((field) => field.dbName ?? field.name),
  }));
}

interface Found {
  schema: string | null;
  zone: string;
  epoch: Date;
  encoding: string;
  standby: boolean;
  reads_only: boolean;
  missing: string[];
  without_right: string[];
}

/** `reason` may be shown to anybody, `detail` is for the log. */
interface DatabaseProblem {
  reason: string;
  detail: string;
}

/**
 * Checks whether this version can work with the database over this connection: the schema, every table with every column, the rights on
 * them, the time zone in which dates are read, whether it is writable. Uses the system catalogue only, so that no locked table keeps it
 * waiting.
 *
 * @returns what is wrong; empty when nothing is
 */
export async function findDatabaseProblems(database: Database): Promise<DatabaseProblem[]> {
  const tables = JSON.stringify(knownTables(database));
  const [found] = await database.$queryRaw<Found[]>`
    WITH known AS (
      SELECT t.name, to_regclass(quote_ident(current_schema()) || '.' || quote_ident(t.name)) AS relation, t.columns
      FROM jsonb_to_recordset(${tables}::jsonb) AS t(name text, columns text[])
    )
    SELECT current_schema() AS schema, current_setting('TimeZone') AS zone, to_timestamp(0) AS epoch,
      current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
      current_setting('transaction_read_only') = 'on' AS reads_only,
      ARRAY(SELECT k.name FROM known k WHERE relation IS NULL UNION ALL
        SELECT k.name || '.' || c FROM known k, unnest(k.columns) c WHERE relation IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = k.relation AND a.attname = c AND NOT a.attisdropped)
      ) AS missing,
      ARRAY(SELECT k.name || ' (' || r || ')' FROM known k, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r
        WHERE relation IS NOT NULL AND NOT has_table_privilege(k.relation, r) UNION ALL
        SELECT s.oid::regclass::text || ' (USAGE)' FROM known k
          JOIN pg_depend d ON d.refobjid = k.relation AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
          JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE') ELSE false END
      ) AS without_right`;
  if (!found) throw new Error("PostgreSQL does not say what is there");
  const { schema, missing, without_right: rights, encoding } = found;
  const named = schema ?? "the schema of DATABASE_URL";
  const problems: [wrong: boolean, reason: string, detail: string][] = [
    [schema === null, "the database has no such schema", `${named} is not there, or may not be used`],
    [missing.length > 0, "the database lacks migrations", `${named} has no ${missing.join(", ")}`],
    [rights.length > 0, "the database refuses rights", `in ${named}, no right to ${rights.join(", ")}`],
    [found.zone !== "UTC" || found.epoch.getTime() !== 0, "the database does not tell times in UTC", found.zone],
    [encoding !== "UTF8", "the database is not encoded in UTF8", encoding],
    [found.standby || found.reads_only, "the database can only be read", found.standby ? "a standby" : "read-only"],
  ];
  return problems.filter(([wrong]) => wrong).map(([, reason, detail]) => ({ reason, detail }));
}

interface Stray {
  ahead: number;
  hours: number;
  shifted: number;
}

/**
 * Rows with impossible times: written by a version that let the server's time zone shift them, or under a clock that was wrong.
 *
 * @returns a sentence for a person, null when there are none
 */
export async function findStrayTimes(database: Database): Promise<string | null> {
  const [stray] = await database.$queryRaw<Stray[]>`
    WITH times AS (
      SELECT created_at AS at FROM backups UNION ALL SELECT updated_at FROM backups UNION ALL SELECT data_timestamp FROM backups
      UNION ALL SELECT created_at FROM volumes UNION ALL SELECT updated_at FROM volumes UNION ALL SELECT created_at FROM operations
    )
    SELECT (SELECT count(*)::int FROM times WHERE at > now() + interval '5 minutes') AS ahead,
      (SELECT coalesce(round(max(extract(epoch FROM at - now())) / 3600, 1), 0)::float8 FROM times) AS hours,
      (SELECT count(*)::int FROM operations WHERE started_at < created_at - interval '5 minutes') AS shifted`;
  if (!stray || stray.ahead + stray.shifted === 0) return null;
  const ahead = stray.ahead > 0 ? `${stray.ahead} times lie in the future (by up to ${stray.hours} hours)` : null;
  const shifted = stray.shifted > 0 ? `${stray.shifted} operations began before they were asked for` : null;
  const seen = [ahead, shifted].filter((one) => one !== null).join(", ");
  return `${seen}: rows were written under another time zone or a wrong clock; see "Times of another zone" in docs/operations.md`;
}

/** Warns of such rows once, when a program starts; silent while the database cannot be queried. */
export async function tellStrayTimes(database: Database, log: Logger): Promise<void> {
  const found = await findStrayTimes(database).catch(() => null);
  if (found !== null) log.warn({ event: "database.stray-times" }, found);
}
