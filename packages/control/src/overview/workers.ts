import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import { backupBinary } from "../queue/services.ts";
import type { PlaceCard } from "../queue/workers.ts";

export interface WorkerTaskRow {
  operationId: string;
  operationKind: string;
  kind: string;
  ordinal: number;
  projectId: string;
  volumeId: string | null;
  backupId: string | null;
  bytesDone: number;
  /** Bytes a second since it began; null where it moves none, or was begun more than once. */
  rate: number | null;
  startedAt: Date | null;
}

export interface KnownWorker {
  id: string;
  host: string;
  pid: number;
  /** Null: of an older release. */
  version: string | null;
  /** `silent`: not heard of within `worker.down_ms`; `disabled`: its host takes no new tasks. */
  state: "live" | "silent" | "disabled";
  disabledReason: string | null;
  startedAt: Date;
  heartbeatAt: Date;
  queue: string;
  slots: number;
  reaches: string[];
  unreachable: Record<string, string>;
  freeBytes: Record<string, number>;
  places: Record<string, PlaceCard>;
  rssBytes: bigint | null;
  tasks: WorkerTaskRow[];
}

/** The workers heard of within the last hour, and what they do. */
export async function listWorkers(database: Database, config: Config): Promise<KnownWorker[]> {
  const workers = await database.$queryRaw<Omit<KnownWorker, "tasks">[]>`
    SELECT id, workers.host, pid, version, CASE WHEN NOT ${isLiveWorker("workers", config.worker.down_ms)} THEN 'silent'
        WHEN d.host IS NOT NULL THEN 'disabled' ELSE 'live' END AS state, d.reason AS "disabledReason",
      started_at AS "startedAt", heartbeat_at AS "heartbeatAt", queue, slots, reaches, unreachable, free_bytes AS "freeBytes", places,
      rss_bytes AS "rssBytes"
    FROM workers LEFT JOIN disabled_services d ON d."binary" = ${backupBinary} AND d.host = workers.host
    ORDER BY workers.host, started_at, id`;
  const tasks = await database.$queryRaw<(WorkerTaskRow & { workerId: string })[]>`
    SELECT t.worker_id AS "workerId", t.operation_id AS "operationId", o.kind AS "operationKind", t.kind, t.ordinal,
      t.project_id AS "projectId", o.volume_id AS "volumeId", o.backup_id AS "backupId", t.bytes_done::float8 AS "bytesDone",
      CASE WHEN t.claim = 1 AND t.bytes_done > 0 THEN t.bytes_done / greatest(1, extract(epoch FROM now() - t.started_at))::float8 END AS rate, t.started_at AS "startedAt"
    FROM tasks t JOIN operations o ON o.id = t.operation_id
    WHERE t.state = 'running' AND t.worker_id IS NOT NULL ORDER BY t.started_at, t.id`;
  const byWorker = Map.groupBy(tasks, ({ workerId }) => workerId);
  return workers.map((worker) => ({ ...worker, tasks: byWorker.get(worker.id) ?? [] }));
}
