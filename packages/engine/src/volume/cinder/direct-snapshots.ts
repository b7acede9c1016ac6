import type { CinderVolume } from "@tephra/openstack";
import { z } from "zod";
import { SourceMissingError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { BackendLeftover } from "../backend.ts";
import { NbdSource } from "../nbd/nbd-volume.ts";
import { hasExactDiffs, saysErrno, saysMissing } from "../rbd/rbd-command.ts";
import { type ImageSnapshot, RbdPool } from "../rbd/rbd-pool.ts";
import { serveRbd } from "../rbd/serve-rbd.ts";
import type { VolumeSource } from "../volume.ts";
import type { CephPlace } from "./connector.ts";

/** An image of ours in each pool: its metadata say which snapshot is of which backup. */
const indexImage = "tephra-backups";
const indexBytes = 1024 * 1024;
const keyOf = (backupId: string): string => `backup-${backupId}`;

const Note = z.object({
  installation: z.string(),
  volume: z.guid(),
  image: z.string(),
  /** Stays the same when the image gets another name, and is another one when it was made anew. */
  imageId: z.string(),
  snapshot: z.string(),
  /** Not a user's own snapshot. */
  isOurs: z.boolean(),
  /** Without a parent: only then can it be said what has changed since. */
  isWhole: z.boolean(),
  /** In ms. */
  at: z.number(),
});
type Note = z.infer<typeof Note>;

interface Found extends Note {
  pool: RbdPool;
}

const deleted = (): SourceMissingError =>
  new SourceMissingError("The volume was deleted while it was being backed up.");

/**
 * Snapshots of Cinder's images in Ceph, made and read without Cinder, under the name that its own backups give them: Cinder's driver removes
 * those when the volume is deleted (cinder/volume/drivers/rbd.py, _delete_backup_snaps). The last one of a volume is kept, and tells the next
 * backup what has changed.
 */
export class DirectSnapshots {
  readonly #places: { pool: RbdPool; isHost: (host: string) => boolean }[];
  readonly #installation: () => Promise<string>;

  constructor(places: readonly CephPlace[], installation: () => Promise<string>) {
    this.#installation = installation;
    this.#places = places.flatMap(({ pools, direct_hosts: hosts, conf = null, user = null, keyring = null }) =>
      pools.map((pool) => ({
        pool: new RbdPool({ pool, namespace: null, conf, user, keyring }),
        isHost: (host: string) => hosts.some((pattern) => fits(pattern, host)),
      })),
    );
  }

  /** The snapshot of a backup that was begun before; null: there is none. SourceMissingError when the volume is gone */
  async again(backupId: string, run: RunContext): Promise<{ sizeBytes: number } | null> {
    const found = await this.#find(backupId);
    return found === null ? null : { sizeBytes: (await this.#frozen(found, run)).sizeBytes };
  }

  /** Null where the volume is in none of the pools, or about to leave it. `from`: the user's snapshot that is read. */
  async freeze(
    volume: CinderVolume,
    { backupId, from }: { backupId: string; from: string | undefined },
    run: RunContext,
  ): Promise<{ sizeBytes: number } | null> {
    const host = volume["os-vol-host-attr:host"]?.split("#")[0];
    if (host === undefined || isMoving(volume)) return null;
    const image = `volume-${volume["os-vol-mig-status-attr:name_id"] ?? volume.id}`;
    for (const { pool, isHost } of this.#places) {
      const info = isHost(host) ? await pool.info(image) : null;
      if (info === null) continue;
      const at = Date.now();
      const snapshot = from === undefined ? `backup.${backupId}.snap.${(at / 1000).toFixed(2)}` : `snapshot-${from}`;
      const isThere = ((await pool.snapshots(image)) ?? []).some(({ name }) => name === snapshot);
      if (from !== undefined && !isThere) continue;
      const installation = await this.#installation();
      const isOurs = from === undefined;
      const isWhole = info.parent === null;
      const note = { installation, volume: volume.id, image, imageId: info.id, snapshot, isOurs, isWhole, at };
      run.signal.throwIfAborted();
      run.fence();
      // Before the snapshot is made: what is not noted would not be found again.
      await setNote(pool, backupId, note);
      return { sizeBytes: (await this.#frozen({ ...note, pool }, run)).sizeBytes };
    }
    return null;
  }

  /** Null where the backup reads no such snapshot. */
  async open(backupId: string): Promise<VolumeSource | null> {
    const found = await this.#find(backupId);
    if (found === null) return null;
    const { pool, image, snapshot: name } = found;
    const { id } = await requireSnapshot(found);
    const served = await serveRbd({ ...pool.access, image, snapshot: name }, { writable: false });
    const fingerprint = async (): Promise<string> => `${name}:${(await requireSnapshot(found)).id}`;
    const source = new NbdSource(served.client, fingerprint);
    if ((await requireSnapshot(found)).id !== id) throw deleted();
    return Object.assign(source, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
  }

  /** @returns whether the backup had such a snapshot. With `backedUp` it is kept, and the volume's earlier ones are removed instead. */
  async thaw(backupId: string, { backedUp }: { backedUp: boolean }): Promise<boolean> {
    const found = await this.#find(backupId);
    if (found === null) return false;
    if (!backedUp || !found.isOurs) {
      await remove(backupId, found);
      return true;
    }
    const installation = await this.#installation();
    for (const [id, note] of await notesIn(found.pool)) {
      const isOlder = note.volume === found.volume && note.installation === installation && note.at < found.at;
      if (isOlder && note.isOurs) await remove(id, { ...note, pool: found.pool });
    }
    return true;
  }

  /** What may differ between the snapshots of two backups; null where Ceph cannot tell. */
  async changes(backupId: string, since: string, range: Extent): Promise<AsyncIterable<Extent> | null> {
    const [now, before] = [await this.#find(backupId), await this.#find(since)];
    if (!now?.isWhole || !before?.isWhole || before.imageId !== now.imageId || before.image !== now.image) return null;
    const [until, from] = [await snapshotOf(now), await snapshotOf(before)];
    if (until === null || from === null || from.id > until.id || !(await hasExactDiffs())) return null;
    return now.pool.changesIn(range, { image: now.image, since: from, until });
  }

  async *leftovers(): AsyncGenerator<BackendLeftover> {
    const installation = await this.#installation();
    for (const { pool } of this.#places) {
      for (const [id, note] of await notesIn(pool)) {
        if (note.installation !== installation) continue;
        yield {
          kind: "snapshot",
          path: pool.shown(note.image, note.snapshot),
          ids: [id],
          modifiedAt: new Date(note.at),
        };
      }
    }
  }

  async #find(backupId: string): Promise<Found | null> {
    for (const { pool } of this.#places) {
      const note = parseNote(await pool.note(indexImage, keyOf(backupId)));
      if (note?.installation === (await this.#installation())) return { ...note, pool };
    }
    return null;
  }

  /** The snapshot, which is made if it is to be ours and is not there yet. */
  async #frozen(found: Found, run: RunContext): Promise<ImageSnapshot> {
    const existing = await snapshotOf(found);
    if (existing !== null) return existing;
    if (!found.isOurs) throw deleted();
    run.signal.throwIfAborted();
    run.fence();
    await found.pool.freeze(found.image, found.snapshot).catch((error: unknown) => {
      throw saysMissing(error) ? deleted() : error;
    });
    return requireSnapshot(found);
  }
}

/** While Cinder moves a volume, only Cinder knows where its bytes are. */
const isMoving = ({ status, migration_status: migration }: CinderVolume): boolean =>
  status === "retyping" || status === "maintenance" || !["success", "error", "none"].includes(migration || "none");

/** Whether a name is of a pattern of letters, digits, `.`, `-`, `_`, `@`, and `*` for anything. */
const fits = (pattern: string, name: string): boolean =>
  new RegExp(`^${pattern.replaceAll(".", "\\.").replaceAll("*", ".*")}$`).test(name);

function parseNote(text: string | null): Note | null {
  try {
    return Note.parse(JSON.parse(text ?? ""));
  } catch {
    return null;
  }
}

async function notesIn(pool: RbdPool): Promise<[backupId: string, note: Note][]> {
  return (await pool.notes(indexImage)).flatMap(([key, value]) => {
    const note = key.startsWith(keyOf("")) ? parseNote(value) : null;
    return note === null ? [] : [[key.slice(keyOf("").length), note] as [string, Note]];
  });
}

async function setNote(pool: RbdPool, backupId: string, note: Note): Promise<void> {
  const set = () => pool.setNote(indexImage, keyOf(backupId), JSON.stringify(note));
  try {
    await set();
  } catch (error) {
    if (!saysMissing(error)) throw error;
    await pool.create(indexImage, indexBytes, "shared").catch((cause: unknown) => {
      if (!saysErrno(cause, "exists")) throw cause;
    });
    await set();
  }
}

/** Null when the snapshot, or its image, is not there or not that one any more. */
async function snapshotOf({ pool, image, imageId, snapshot }: Found): Promise<ImageSnapshot | null> {
  if ((await pool.info(image))?.id !== imageId) return null;
  return ((await pool.snapshots(image)) ?? []).find(({ name }) => name === snapshot) ?? null;
}

async function requireSnapshot(found: Found): Promise<ImageSnapshot> {
  const snapshot = await snapshotOf(found);
  if (snapshot === null) throw deleted();
  return snapshot;
}

/** The snapshot first: as long as it is there, it can be found. */
async function remove(backupId: string, { pool, image, imageId, snapshot, isOurs }: Found): Promise<void> {
  if (isOurs && (await pool.info(image))?.id === imageId) await pool.removeSnapshot(image, snapshot);
  await pool.removeNote(indexImage, keyOf(backupId));
}
