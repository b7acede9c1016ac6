import { ask, queryText } from "./api.ts";

/** What the console reads from Cinder's dialect. */
export interface CinderBackup {
  id: string;
  name: string | null;
  status: string;
  volume_id: string;
  size: number;
  is_incremental: boolean;
  has_dependent_backups: boolean;
  object_count: number;
  created_at: string;
  data_timestamp: string | null;
  fail_reason: string | null;
  container: string | null;
}

export interface CinderVolume {
  id: string;
  name: string | null;
  status: string;
  size: number;
  created_at: string;
}

/** Cinder's times are UTC without saying so. */
export const utc = (time: string | null): string | null =>
  time === null ? null : /[Z+]|-\d\d:\d\d$/.test(time.slice(10)) ? time : `${time}Z`;

export const volumePath = (project: string, id: string): string =>
  `/v3/${encodeURIComponent(project)}/volumes/${encodeURIComponent(id)}`;

export const backupPath = (project: string, id: string): string =>
  `/v3/${encodeURIComponent(project)}/backups/${encodeURIComponent(id)}`;

export const backupsPath = (project: string, query: Record<string, string | undefined>): string =>
  `/v3/${encodeURIComponent(project)}/backups/detail${queryText(query)}`;

/** @throws Fault */
export const startBackup = (project: string, backup: Record<string, unknown>): Promise<unknown> =>
  ask("POST", `/v3/${encodeURIComponent(project)}/backups`, { backup });
