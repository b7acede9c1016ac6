import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { backupBinary, listServices, type ServiceRow } from "../queue/services.ts";
import { freeBytesOf } from "../queue/workers.ts";
import { protocolOf, provisions } from "../volume-backends.ts";

/** A volume backend, as a pool for placing volumes. */
export interface Pool {
  backend: string;
  /** Free bytes, according to the worker with the latest heartbeat; null when none reports any. */
  freeBytes: number | null;
  /** Total size that its volumes may grow to, in GiB. */
  allocatedGib: number;
  volumes: number;
  /** Whether any worker can reach it. */
  up: boolean;
  protocol: "file" | "block" | "ceph";
  /** Whether volumes and snapshots can be made in it. */
  provisions: boolean;
}

const backendOf = ({ host }: ServiceRow): string => host.slice(host.indexOf("@") + 1);

/** The configured backends, in configuration order. */
export async function listPools(database: Database, config: Config): Promise<Pool[]> {
  const services = await listServices(database, config, { binary: "cinder-volume" });
  return Promise.all(
    config.volume_backends.map(async (settings) => {
      const { name } = settings;
      const [sums, freeBytes] = await Promise.all([
        database.volume.aggregate({ where: { backend: name }, _count: true, _sum: { sizeGib: true } }),
        freeBytesOf(database, name),
      ]);
      const up = services.some((service) => service.up && backendOf(service) === name);
      const told = { protocol: protocolOf(settings), provisions: provisions(settings) };
      return { backend: name, freeBytes, allocatedGib: sums._sum.sizeGib ?? 0, volumes: sums._count, up, ...told };
    }),
  );
}

/** A project's usage of a backend. */
export interface HostUse {
  projectId: string;
  volumes: number;
  volumeGib: number;
  snapshots: number;
  snapshotGib: number;
}

/** Usage by project of the backend that a volume service stands for; null when no such service is known. */
export async function useOfHost(database: Database, config: Config, host: string): Promise<HostUse[] | null> {
  const services = await listServices(database, config, { host });
  const service = services.find((row) => row.binary !== backupBinary && row.host === host);
  if (!service) return null;
  return database.$queryRaw<HostUse[]>`
    SELECT coalesce(v.project_id, s.project_id) AS "projectId", coalesce(v.n, 0)::int AS volumes, coalesce(v.gib, 0)::int AS "volumeGib",
      coalesce(s.n, 0)::int AS snapshots, coalesce(s.gib, 0)::int AS "snapshotGib"
    FROM (SELECT project_id, count(*) AS n, sum(size_gib) AS gib FROM volumes WHERE backend = ${backendOf(service)} GROUP BY project_id) v
    FULL JOIN (SELECT s.project_id, count(*) AS n, sum(s.size_gib) AS gib FROM snapshots s JOIN volumes v ON v.id = s.volume_id
      WHERE v.backend = ${backendOf(service)} GROUP BY s.project_id) s ON s.project_id = v.project_id
    ORDER BY 1`;
}
