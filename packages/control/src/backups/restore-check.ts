import { type Config, defaultVolumeBackend } from "../config.ts";
import type { Database } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { QuotaExceededError } from "../errors.ts";
import { type Principal, seesAll } from "../principal.ts";
import { taskRanks } from "../queue/tasks.ts";
import { freeBytesOf, liveQueues, needToRead, whyUnreachable } from "../queue/workers.ts";
import { type Backup, getBackup } from "../rows/backups.ts";
import { type ChainLink, missingLink, readChain } from "../rows/chains.ts";
import { assertQuota } from "../rows/quotas.ts";
import { canProvision, GiB, getVolume, gibOf, provisioningRefusal, type VolumeRow } from "../rows/volumes.ts";
import { besideIn } from "../volume-backends.ts";
import { sizeRefusal, targetRefusal } from "./restore.ts";

type Code = "chain" | "damage" | "proof" | "workers" | "space" | "quota" | "target_free" | "key" | "shut_off";

interface Check {
  code: Code;
  /** Null: it is not known. */
  ok: boolean | null;
  /** One sentence. */
  text: string;
}

export interface RestoreCheck {
  /** `no`: a check has failed, and the restore would be refused or fail; `perhaps`: one could not be made. */
  verdict: "yes" | "perhaps" | "no";
  checks: Check[];
  estimate: { seconds: number | null; bytes: number | null; basis: string };
  /** Tasks of the project that wait and go before it, at most `aheadMax`. */
  ahead: number;
}

/** What is asked: over a volume, or to a new one, of a length or of the backup's. */
export interface RestoreQuestion {
  backupId: string;
  volumeId: string | null;
  bytes: number | null;
}

/** The restore in question. `volume`: null for a new one; `isBeside`: another service has the volumes. */
interface Asked {
  database: Database;
  config: Config;
  principal: Principal;
  backup: Backup;
  /** Newest first, as far as the rows are there. */
  links: ChainLink[];
  volume: VolumeRow | null;
  sizeGib: number;
  backend: string;
  isBeside: boolean;
}

type Checker = (asked: Asked) => Check[] | Promise<Check[]>;

const aheadMax = 1_000;
/** An estimate is from so many of the newest restores that read the repository, among so many of all. */
const measured = { restores: 20, among: 500 };

/**
 * Whether a restore would work, before anything starts: the restore's own checks, and what is known of the backup, the workers and the
 * target. Reads a few rows by their keys and changes nothing (console.md 2.3, R6).
 *
 * @throws NotFoundError for a backup or volume that is unknown, or another project's
 */
export async function checkRestore(
  database: Database,
  config: Config,
  principal: Principal,
  { backupId, volumeId, bytes }: RestoreQuestion,
): Promise<RestoreCheck> {
  const backup = await getBackup(database, principal, backupId);
  const beside = besideIn(config.volume_backends);
  const volume = volumeId === null || beside !== null ? null : await getVolume(database, principal, volumeId);
  const asked: Asked = {
    ...{ database, config, principal, backup, volume },
    links: await readChain(database, backup.id),
    sizeGib: bytes === null ? backup.sizeGib : gibOf(bytes),
    backend: volume?.backend ?? beside?.name ?? defaultVolumeBackend(config).name,
    isBeside: beside !== null,
  };
  const checks = (await Promise.all(checkers.map((check) => check(asked)))).flat();
  const verdict = checks.some(({ ok }) => ok === false)
    ? "no"
    : checks.some(({ ok }) => ok === null)
      ? "perhaps"
      : "yes";
  return { verdict, checks, estimate: await estimate(asked), ahead: await countAhead(asked) };
}

const many = (count: number, one: string, more = `${one}s`): string => `${count} ${count === 1 ? one : more}`;

const sizeText = (bytes: number): string =>
  bytes >= GiB ? `${(bytes / GiB).toFixed(1)} GiB` : `${(bytes / 1024 ** 2).toFixed(1)} MiB`;

function chain({ backup, links }: Asked): Check[] {
  const code = "chain";
  if (backup.status !== "available") {
    return [{ code, ok: false, text: `The backup is ${backup.status}: only an available one can be restored.` }];
  }
  const gone = missingLink(links, backup.id);
  if (gone !== null) return [{ code, ok: false, text: `It builds on backup ${gone}, which is not there.` }];
  const text =
    links.length === 1 ? "The backup is there, and builds on no other." : `All ${links.length} members are there.`;
  return [{ code, ok: true, text }];
}

function damage({ links }: Asked): Check[] {
  const code = "damage";
  const damaged = links.filter((link) => link.damage !== null);
  const [first] = damaged;
  const isAlone = links.length <= 1;
  if (first === undefined) {
    const none = isAlone ? "It" : `None of its ${links.length} members`;
    return [{ code, ok: true, text: `${none} is ${isAlone ? "not " : ""}known to be damaged.` }];
  }
  const are = damaged.length === 1 ? "is" : "are";
  const what = isAlone ? "It is damaged" : `${damaged.length} of its ${links.length} members ${are} damaged`;
  return [{ code, ok: false, text: `${what}: ${first.damage} (backup ${first.id}).` }];
}

/** Whether every byte was read; a quick verification looks only whether the objects are there. */
const isDeep = ({ verifiedMode }: Backup): boolean => verifiedMode !== null && verifiedMode !== "quick";

function proof({ backup }: Asked): Check[] {
  const code = "proof";
  if (backup.verifiedAt === null) {
    return [{ code, ok: null, text: "Nobody has proven yet that it can be restored: a deep verification would." }];
  }
  const at = `${backup.verifiedAt.toISOString().slice(0, 16).replace("T", " ")} UTC`;
  if (isDeep(backup))
    return [{ code, ok: true, text: `Every byte was read and compared on ${at} (${backup.verifiedMode}).` }];
  return [{ code, ok: null, text: `On ${at} its objects were there in full; no byte was read (quick).` }];
}

/** A worker's own words name hosts and paths: they are for who sees all projects. */
async function workers({ database, config, principal, links, backend }: Asked): Promise<Check[]> {
  const code = "workers";
  const repositories = [...new Set(links.map(({ repository }) => repository))];
  const needs = [...repositories.map(needToRead), `backend:${backend}`];
  const queues = await liveQueues(database, config.worker.down_ms);
  const fit = queues.filter(({ reaches }) => needs.every((need) => reaches.includes(need)));
  const places = [...repositories, backend].join(" and ");
  const count = fit.reduce((sum, queue) => sum + queue.workers, 0);
  if (count > 0) return [{ code, ok: true, text: `${many(count, "worker reaches", "workers reach")} ${places}.` }];
  if (queues.length === 0)
    return [{ code, ok: false, text: "No worker is alive and takes work: a restore would wait." }];
  const words = seesAll(principal) ? await whyUnreachable(database, needs, config.worker.down_ms) : [];
  const why = words.length === 0 ? "" : ` (${words.join("; ")})`;
  return [{ code, ok: false, text: `No live worker reaches ${places}${why}: a restore would wait.` }];
}

/**
 * New bytes are written beside the old ones, if any, but where the volume is written in place. Holes take no space, so it may fit though the
 * length does not; what the newest member has stored is written in any case.
 */
async function space({ database, config, backup, links, backend, isBeside }: Asked): Promise<Check[]> {
  const code = "space";
  if (isBeside) return [];
  if (!canProvision(config, backend)) return [{ code, ok: true, text: "The volume is written in place." }];
  const free = await freeBytesOf(database, backend);
  if (free === null) return [{ code, ok: null, text: `No worker says how much is free on ${backend}.` }];
  const most = Number(backup.volumeBytes ?? BigInt(backup.sizeGib) * BigInt(GiB));
  const least = Number(links[0]?.storedBytes ?? 0n);
  const text = `${sizeText(free)} are free on ${backend}`;
  if (free >= most) return [{ code, ok: true, text: `${text}, at most ${sizeText(most)} are needed.` }];
  if (free < least) return [{ code, ok: false, text: `Only ${text}, at least ${sizeText(least)} are needed.` }];
  return [{ code, ok: null, text: `${text}, up to ${sizeText(most)} are needed: it fits if enough of that is holes.` }];
}

async function quota({ database, config, principal, volume, sizeGib, isBeside }: Asked): Promise<Check[]> {
  const code = "quota";
  if (volume !== null || isBeside) return [];
  try {
    await assertQuota(database, config, principal.projectId, { volumes: 1, gigabytes: sizeGib });
  } catch (error) {
    if (error instanceof QuotaExceededError) return [{ code, ok: false, text: `${error.message}.` }];
    throw error;
  }
  return [{ code, ok: true, text: `The quota has room for a volume of ${sizeGib} GiB.` }];
}

function targetFree({ config, backup, volume, sizeGib, backend, isBeside }: Asked): Check[] {
  const code = "target_free";
  if (isBeside) return [{ code, ok: null, text: "The target is a Cinder's, which is asked when the restore is." }];
  if (volume !== null) {
    const refused = targetRefusal(volume, backup);
    if (refused === null) return [{ code, ok: true, text: "The volume is available and long enough." }];
    const is = volume.status === "available" ? "" : `: it is ${volume.status}.`;
    return [{ code, ok: false, text: `${refused}${is}` }];
  }
  const refused = provisioningRefusal(config, backend, "create volume") ?? sizeRefusal(sizeGib, backup);
  if (refused !== null) return [{ code, ok: false, text: refused }];
  return [{ code, ok: true, text: `A new volume is made on ${backend}.` }];
}

/** Only a worker sees the keys; a verification that has read every byte had the right ones. */
function key({ config, backup, links }: Asked): Check[] {
  const code = "key";
  const names = new Set(links.map(({ repository }) => repository));
  const encrypted = config.repositories.filter(({ name, encryption }) => encryption !== undefined && names.has(name));
  if (encrypted.length === 0) return [];
  const places = encrypted.map(({ name }) => name).join(" and ");
  if (isDeep(backup)) return [{ code, ok: true, text: `The last verification had the keys of ${places}.` }];
  return [{ code, ok: null, text: `Whether workers have the keys of ${places} shows when the backup is read.` }];
}

/** A disk of a machine is restored with the whole machine, which has to be shut off. */
async function shutOff({ database, volume }: Asked): Promise<Check[]> {
  const code = "shut_off";
  const server = volume?.attachments[0]?.serverId;
  if (volume === null || volume.attachments.length === 0) return [];
  const instance = server && isUuid(server) ? { projectId: volume.projectId, id: server } : null;
  const machine = instance && (await database.instance.findFirst({ where: instance }));
  if (!machine) return [{ code, ok: false, text: "The volume is attached, and has to be detached first." }];
  const is = `The volume is a disk of machine ${machine.name}, which is ${machine.powerState}`;
  return [{ code, ok: false, text: `${is}: restore the machine as a whole once it is shut off, or detach the disk.` }];
}

/** In the order in which they are told. */
const checkers: readonly Checker[] = [chain, damage, proof, workers, space, quota, targetFree, key, shutOff];

/** As fast as the newest restores from the same repository were, taken together. */
async function estimate({ database, backup }: Asked): Promise<RestoreCheck["estimate"]> {
  const { repository } = backup;
  const [past] = await database.$queryRaw<{ count: number; bytes: number; seconds: number }[]>`
    SELECT count(*)::int AS count, coalesce(sum(bytes_total), 0)::float8 AS bytes,
      coalesce(sum(extract(epoch FROM finished_at - started_at)), 0)::float8 AS seconds
    FROM (
      SELECT o.bytes_total, o.started_at, o.finished_at
      FROM (SELECT * FROM operations WHERE kind = 'backup-restore' AND state = 'succeeded'
        ORDER BY created_at DESC LIMIT ${measured.among}) o
      JOIN backups b ON b.id = o.backup_id
      WHERE b.repository = ${repository} AND o.started_at IS NOT NULL AND o.finished_at IS NOT NULL
      ORDER BY o.created_at DESC LIMIT ${measured.restores}) newest`;
  const bytes = backup.volumeBytes === null ? null : Number(backup.volumeBytes);
  if (!past || past.bytes === 0 || bytes === null) {
    return { seconds: null, bytes, basis: `no restore from ${repository} to judge by` };
  }
  const basis = past.count === 1 ? "the last restore" : `the last ${past.count} restores`;
  return { seconds: Math.ceil((bytes / past.bytes) * past.seconds), bytes, basis: `${basis} from ${repository}` };
}

async function countAhead({ database, backup }: Asked): Promise<number> {
  const [row] = await database.$queryRaw<{ ahead: number }[]>`
    SELECT count(*)::int AS ahead FROM (
      SELECT FROM tasks WHERE state IN ('ready', 'dispatched') AND project_id = ${backup.projectId}
        AND rank <= ${taskRanks["plan-restore"]}::int LIMIT ${aheadMax}) waiting`;
  return row?.ahead ?? 0;
}
