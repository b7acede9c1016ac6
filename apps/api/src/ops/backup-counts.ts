import { type BackupFacets, type BackupsQuery, countBackups, type Database, type Principal } from "@tephra/control";
import { rarelyEach } from "@tephra/control/process";
import { scopeOf } from "./overviews.ts";

/** Whoever asks again within this time is told the same: that reads all backups. */
const freshMs = 5_000;
const queriesMax = 1_000;

export type BackupCounts = (principal: Principal, query: BackupsQuery) => Promise<BackupFacets>;

/** How many backups match a query, of those that the caller sees. */
export function openBackupCounts(database: Database): BackupCounts {
  const kept = rarelyEach<BackupFacets>(freshMs, queriesMax);
  return (principal, query) =>
    kept(JSON.stringify([scopeOf(principal), query]), () => countBackups(database, principal, query));
}
