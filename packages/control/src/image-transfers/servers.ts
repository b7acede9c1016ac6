import { join, resolve } from "node:path";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import type { ImageServerRow } from "../rows/image-transfers.ts";

export interface ImageServerCard {
  id: string;
  host: string;
  pid: number;
  url: string;
  backends: readonly string[];
  repositories: readonly string[];
}

/** The file of the certificate that signs those of servers of images; null: one that this machine trusts. */
export function imageServerAuthority({ image_transfers: images, tls, data_dir }: Config): string | null {
  if (images?.certificate_file != null || tls.port === null) return null;
  return tls.certificate_file === null ? join(resolve(tls.ca_dir ?? join(data_dir, "tls")), "ca.pem") : tls.ca_file;
}

/** What a process has to open for a transfer: a volume backend, or all repositories that a chain is in. */
export type ImagePlace = { backend: string } | { repositories: readonly string[] };

/** Registers a process that serves images, or renews its registration. */
export async function publishImageServer(database: Database | Transaction, card: ImageServerCard): Promise<void> {
  const { id, host, pid, url, backends, repositories } = card;
  await database.$executeRaw`
    INSERT INTO image_servers (id, host, pid, url, backends, repositories, heartbeat_at)
    VALUES (${id}::uuid, ${host}, ${pid}, ${url}, ${[...backends]}::text[], ${[...repositories]}::text[], now())
    ON CONFLICT (id) DO UPDATE SET backends = EXCLUDED.backends, repositories = EXCLUDED.repositories, heartbeat_at = now()`;
}

/**
 * Registers a process, and takes over what an earlier one at the same place served, which is gone: nobody else can listen there. Its clients
 * go on with the tickets that they have, from the moment on at which the process is known.
 */
export async function succeedImageServers(database: Database, card: ImageServerCard): Promise<void> {
  await inTransaction(database, async (tx) => {
    await publishImageServer(tx, card);
    const gone = await tx.imageServer.findMany({ where: { host: card.host, url: card.url, id: { not: card.id } } });
    const ids = gone.map(({ id }) => id);
    if (ids.length === 0) return;
    await tx.imageTransfer.updateMany({ where: { serverId: { in: ids }, endedAt: null }, data: { serverId: card.id } });
    const drafts = { draftServerId: { in: ids }, endedAt: null };
    await tx.imageTransfer.updateMany({ where: drafts, data: { draftServerId: card.id } });
    await tx.imageServer.deleteMany({ where: { id: { in: ids } } });
  });
}

/** A stopping process that serves nothing any more. */
export async function withdrawImageServer(database: Database, id: string): Promise<void> {
  await database.imageServer.deleteMany({ where: { id } });
}

/** The live processes, those first that serve least. */
export function listImageServers(database: Database | Transaction, config: Config): Promise<ImageServerRow[]> {
  // A process of an earlier release has told no repositories.
  return database.$queryRaw<ImageServerRow[]>`
    SELECT id, host, pid, url, backends, coalesce(repositories, '{}') AS repositories, started_at AS "startedAt", heartbeat_at AS "heartbeatAt" FROM image_servers s
    WHERE ${isLiveWorker("s", config.worker.down_ms)}
    ORDER BY (SELECT count(*) FROM image_transfers t WHERE t.server_id = s.id AND t.ended_at IS NULL), id`;
}

/** One that can open the place: `before`, or another on `host`, where such a one is there. Null when there is none. */
export async function imageServerFor(
  tx: Transaction,
  config: Config,
  place: ImagePlace,
  { host, before = null }: { host: string | null; before?: string | null },
): Promise<ImageServerRow | null> {
  const able = (await listImageServers(tx, config)).filter(({ backends, repositories }) =>
    "backend" in place
      ? backends.includes(place.backend)
      : place.repositories.every((name) => repositories.includes(name)),
  );
  return able.find(({ id }) => id === before) ?? able.find((server) => server.host === host) ?? able[0] ?? null;
}
