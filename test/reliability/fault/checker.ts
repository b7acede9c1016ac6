import { join } from "node:path";
import { poll } from "../../../scripts/poll.ts";
import { type House, project } from "../../kit/house.ts";
import { type AskedBackup, ask, graceMs, type Outcome, rested, rowsOf, sha256Of, statusOf } from "./model.ts";
import { filesBelow, type Store } from "./store.ts";

/** What must not be, each with enough words to find it again. */
export interface Findings {
  lost: string[];
  corrupt: string[];
  stuck: string[];
  orphans: string[];
}

export const noFindings = (): Findings => ({ lost: [], corrupt: [], stuck: [], orphans: [] });

const unfinished = `SELECT o.kind || ' ' || o.id AS what FROM operations o WHERE o.state IN ('queued', 'running')
  UNION ALL SELECT t.kind || ' ' || t.id FROM tasks t WHERE t.state IN ('ready', 'dispatched', 'running', 'blocked')
  UNION ALL SELECT 'volume ' || id || ' ' || status FROM volumes
    WHERE status NOT IN ('available', 'error', 'error_restoring', 'error_deleting')
  UNION ALL SELECT 'backup ' || id || ' ' || status FROM backups
    WHERE deleted_at IS NULL AND status NOT IN ('available', 'error', 'error_deleting')
  UNION ALL SELECT 'snapshot ' || id || ' ' || status FROM snapshots WHERE status NOT IN ('available', 'error')`;

/** Waits until nothing is going on any more; what still is after the grace time is stuck. */
export async function findStuck(house: House): Promise<string[]> {
  let left: string[] = [];
  const quiet = async (): Promise<boolean> => {
    left = (await rowsOf<{ what: string }>(house, unfinished)).map(({ what }) => what);
    return left.length === 0;
  };
  await poll(quiet, { what: "everything rests", timeoutMs: graceMs, everyMs: 100 }).catch(() => {});
  return left;
}

/** Every backup that was accepted has a row in a final status, unless it may have been deleted. Fills in the ids of lost answers. */
export async function findLost(house: House, asked: readonly AskedBackup[]): Promise<string[]> {
  const lost: string[] = [];
  for (const backup of asked) {
    if (backup.id === null) {
      const [row] = await rowsOf<{ id: string }>(house, "SELECT id FROM backups WHERE name = $1", [backup.name]);
      backup.id = row?.id ?? null;
      continue;
    }
    if ((await statusOf(house, "backups", backup.id)) === null && !backup.dropped) lost.push(`backup ${backup.id}`);
  }
  return lost;
}

/** Restores every available backup and compares it with what its volume held when it was asked for. */
export async function findCorrupt(
  house: House,
  asked: readonly AskedBackup[],
): Promise<{ corrupt: string[]; exact: number; failed: number }> {
  const corrupt: string[] = [];
  let exact = 0;
  let failed = 0;
  for (const { id, name, sha256 } of asked) {
    if (id === null) continue;
    const status = await statusOf(house, "backups", id);
    if (status === "error") failed += 1;
    if (status !== "available") continue;
    const outcome = await restoreOf(house, id);
    if (outcome.kind !== "accepted") {
      corrupt.push(`backup ${id} (${name}) cannot be restored: ${JSON.stringify(outcome)}`);
      continue;
    }
    const target = outcome.answer.restore.volume_id;
    const end = await rested(house, "volumes", target);
    const same = end === "available" && (await sha256Of(house.volumeFile(target))) === sha256;
    if (same) exact += 1;
    else
      corrupt.push(
        `backup ${id} (${name}): the restored volume is ${end}, its bytes are ${same ? "" : "not "}the same`,
      );
    await rested(house, "backups", id);
    await ask(house, "DELETE", `/volumes/${target}`);
  }
  return { corrupt, exact, failed };
}

/** Asked again as long as nobody knows what became of it: a volume too many is removed with the others. */
async function restoreOf(house: House, id: string): Promise<Outcome<{ restore: { volume_id: string } }>> {
  let outcome: Outcome<{ restore: { volume_id: string } }> = { kind: "unknown" };
  let lost = false;
  const answered = async (): Promise<boolean> => {
    outcome = await ask(house, "POST", `/backups/${id}/restore`, { restore: {} });
    lost ||= outcome.kind === "unknown";
    // One whose answer was lost may hold the backup meanwhile.
    return outcome.kind === "accepted" || (outcome.kind === "refused" && !lost);
  };
  await poll(answered, { what: "the restore is answered", timeoutMs: graceMs, everyMs: 500 }).catch(() => {});
  return outcome;
}

/** Files that nothing refers to, in the repository and beside the volumes; a quota that is not the sum of its rows. */
export async function findOrphans(house: House & { store: Store }): Promise<string[]> {
  const orphans: string[] = [];
  const rows = await rowsOf<{ container: string; prefix: string }>(
    house,
    "SELECT container, service_metadata AS prefix FROM backups WHERE deleted_at IS NULL AND service_metadata IS NOT NULL",
  );
  const isKept = (path: string): boolean =>
    path.endsWith(".tephra/repository.json") ||
    path.startsWith("foreign-") ||
    rows.some(({ container, prefix }) => path.startsWith(`${container}/${prefix}`));
  for (const path of await house.store.names(house.dir)) if (!isKept(path)) orphans.push(`repository/${path}`);
  const known = await rowsOf<{ name: string }>(
    house,
    "SELECT 'volume-' || id AS name FROM volumes UNION ALL SELECT 'snapshot-' || id FROM snapshots",
  );
  const names = new Set(known.map(({ name }) => name));
  for (const path of await filesBelow(join(house.dir, "volumes"))) {
    if (!names.has(path.split("/").at(-1) ?? "")) orphans.push(`volumes/${path}`);
  }
  const drifted = await rowsOf<{ resource: string; counted: number; used: number }>(house, quotaDrift, [project]);
  for (const { resource, counted, used } of drifted)
    orphans.push(`quota of ${resource}: ${used} used, ${counted} there`);
  return orphans;
}

const quotaDrift = `WITH there AS (
    SELECT (SELECT count(*) FROM volumes WHERE project_id = $1) AS volumes,
      (SELECT count(*) FROM snapshots WHERE project_id = $1) AS snapshots,
      (SELECT coalesce(sum(size_gib), 0) FROM (SELECT size_gib FROM volumes WHERE project_id = $1
        UNION ALL SELECT size_gib FROM snapshots WHERE project_id = $1) AS all_sizes) AS gigabytes,
      (SELECT count(*) FROM groups WHERE project_id = $1) AS groups,
      (SELECT count(*) FROM backups WHERE project_id = $1 AND deleted_at IS NULL) AS backups,
      (SELECT coalesce(sum(size_gib), 0) FROM backups WHERE project_id = $1 AND deleted_at IS NULL) AS backup_gigabytes)
  SELECT line.resource, line.counted::int AS counted, line.used::int AS used FROM there, quotas q, LATERAL (VALUES
    ('volumes', there.volumes, q.volumes_used), ('snapshots', there.snapshots, q.snapshots_used),
    ('gigabytes', there.gigabytes, q.gigabytes_used), ('groups', there.groups, q.groups_used),
    ('backups', there.backups, q.backups_used),
    ('backup_gigabytes', there.backup_gigabytes, q.backup_gigabytes_used)) AS line(resource, counted, used)
  WHERE q.project_id = $1 AND line.counted <> line.used`;
