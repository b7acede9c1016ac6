import { type CinderSettings, CinderUnavailableError, openCinder } from "@tephra/openstack";
import {
  BackendUnavailableError,
  NotReadyYetError,
  OperationNotSupportedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import type { RunContext } from "../../run/run-context.ts";
import type {
  BackendLeftover,
  HeldTarget,
  RestoredProperties,
  RestoreLengths,
  SourceReference,
  VolumeBackend,
  VolumeCapabilities,
} from "../backend.ts";
import { checkId } from "../file/file-backend.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { askCinder, type CinderPatience, isAway } from "./ask-cinder.ts";
import { Clones } from "./clones.ts";
import type { ConnectorPlaces } from "./connector.ts";
import { openAttachedSource, openAttachedTarget } from "./connectors.ts";
import { DirectSnapshots } from "./direct-snapshots.ts";
import { HeldTargets } from "./held-targets.ts";

const GiB = 1024 ** 3;

export interface CinderPlace extends CinderSettings, Pick<ConnectorPlaces, "ceph" | "lockFolder"> {
  /** What marks all that is made in Cinder as ours: the id of the database whose operations these are. Asked for once it is needed. */
  installation: () => Promise<string>;
  local_roots: readonly string[];
  nfs_mount_base: string | null;
  iscsi_portals: readonly string[];
  initiator: string;
  mark_restoring: boolean;
  wait: { clone_minutes: number; delete_minutes: number };
}

/**
 * The `cinder` driver: volumes are those of a real Cinder, which alone makes, changes and removes them. What is read is a clone in the
 * service project, under the id of the backup; what is written is a volume that was reserved when its restore was accepted.
 */
export class CinderBackend implements VolumeBackend {
  readonly capabilities: VolumeCapabilities;
  readonly #cinder: ReturnType<typeof openCinder>;
  readonly #places: ConnectorPlaces;
  readonly #patience: CinderPatience;
  readonly #clones: Clones;
  /** Null where Cinder clones everything. */
  readonly #direct: DirectSnapshots | null;
  readonly #targets: HeldTargets;
  /** Lengths that targets must have at least, by the restore's id. */
  readonly #lengths = new Map<string, number>();

  constructor(place: CinderPlace) {
    const { wait } = place;
    let known: Promise<string> | null = null;
    const installation = (): Promise<string> => {
      known ??= place.installation().catch((error: unknown) => {
        known = null;
        throw error;
      });
      return known;
    };
    this.#cinder = openCinder(place);
    this.#places = {
      localRoots: place.local_roots,
      ceph: place.ceph,
      nfsBase: place.nfs_mount_base,
      iscsiPortals: place.iscsi_portals,
      lockFolder: place.lockFolder,
    };
    this.#patience = { cloneMs: wait.clone_minutes * 60_000, deleteMs: wait.delete_minutes * 60_000 };
    const patience = this.#patience;
    const initiator = (id: string): string => `${place.initiator}:${id}`;
    const direct = place.ceph.filter((each) => each.direct_hosts.length > 0);
    this.#direct = direct.length === 0 ? null : new DirectSnapshots(direct, installation);
    this.capabilities = { restores: "in-place", tellsChanges: direct.length > 0, fingerprints: "everywhere" };
    this.#clones = new Clones(this.#cinder.service, { installation, patience, initiator });
    this.#targets = new HeldTargets(this.#cinder.service, {
      installation,
      patience,
      initiator,
      markRestoring: place.mark_restoring,
    });
  }

  /**
   * Whether the service user may do its work. No volume can be made, so there is no space for any.
   *
   * @throws NotReadyYetError where Cinder does not answer: what is to be done there waits for it; BackendUnavailableError
   */
  async freeBytes(): Promise<number> {
    try {
      await this.#cinder.service.probe();
      return 0;
    } catch (error) {
      if (error instanceof CinderUnavailableError) throw isAway(error, this.#patience);
      throw new BackendUnavailableError(error instanceof Error ? error.message : String(error), { cause: error });
    }
  }

  create(): Promise<never> {
    return refuse("create volume");
  }

  clone(): Promise<never> {
    return refuse("create volume from another one");
  }

  extend(): Promise<never> {
    return refuse("extend volume");
  }

  remove(): Promise<never> {
    return refuse("delete volume");
  }

  async measure(volumeId: string): Promise<{ sizeBytes: number }> {
    checkId(volumeId);
    const { size } = await askCinder("show the volume", this.#patience, () => this.#cinder.service.volume(volumeId));
    return { sizeBytes: size * GiB };
  }

  /** Every backup reads a clone: the volume itself is neither marked nor locked. */
  async canFreezeCheaply(): Promise<boolean> {
    return true;
  }

  /** `snapshotId` is that of the backup, under which the clone is found again. */
  async freeze(volumeId: string, snapshotId: string, run: RunContext, from?: string): Promise<{ sizeBytes: number }> {
    const direct = await this.#freezeDirectly(checkId(volumeId), checkId(snapshotId), run, from);
    if (direct !== null) return direct;
    const clone = await this.#clones.make(checkId(snapshotId), { volumeId: checkId(volumeId), from }, run);
    await this.#clones.attach(snapshotId, clone);
    return { sizeBytes: clone.size * GiB };
  }

  /** Null where it is Cinder that clones the volume. */
  async #freezeDirectly(
    volumeId: string,
    backupId: string,
    run: RunContext,
    from: string | undefined,
  ): Promise<{ sizeBytes: number } | null> {
    if (this.#direct === null) return null;
    const known = await this.#direct.again(backupId, run);
    if (known !== null) return known;
    const volume = await askCinder("show the volume", this.#patience, () => this.#cinder.service.volume(volumeId));
    return this.#direct.freeze(volume, { backupId, from }, run);
  }

  async thaw(snapshotId: string, { backedUp = false }: { backedUp?: boolean } = {}): Promise<void> {
    if (await this.#direct?.thaw(checkId(snapshotId), { backedUp })) return;
    await this.#clones.remove(checkId(snapshotId));
  }

  snapshotPaths(): never {
    throw new BackendUnavailableError("Snapshots of Cinder's volumes are taken by Cinder.");
  }

  async openSource(source: SourceReference): Promise<VolumeSource> {
    if ("volumeId" in source) throw new SourceMissingError(`Volume ${source.volumeId} is read from a clone only.`);
    const backupId = checkId(source.snapshotId);
    const direct = await this.#direct?.open(backupId);
    if (direct) return direct;
    const known = this.#clones.known(backupId);
    if (known !== null) {
      const opened = await openAttachedSource(known, this.#places, known.clone.id).catch(() => null);
      if (opened !== null) return opened;
      this.#clones.forget(backupId);
    }
    const attached = await this.#clones.attached(backupId);
    return openAttachedSource(attached, this.#places, attached.clone.id);
  }

  /** `since`: the backup whose snapshot it is. */
  async *changedExtents(source: SourceReference, since: string, range: Extent): AsyncGenerator<Extent> {
    const whole = clipExtent(range, range);
    if (whole === null) return;
    const changes =
      "snapshotId" in source ? await this.#direct?.changes(checkId(source.snapshotId), checkId(since), whole) : null;
    if (changes) yield* changes;
    else yield whole;
  }

  async beginRestore(
    volumeId: string,
    restoreId: string,
    lengths: RestoreLengths & { held?: HeldTarget },
    run?: RunContext,
  ): Promise<void> {
    this.#lengths.set(checkId(restoreId), lengths.sizeBytes);
    await this.#targets.begin(checkId(volumeId), restoreId, lengths.held, run);
  }

  wasPublished(volumeId: string, restoreId: string): Promise<boolean> {
    return this.#targets.wasReleased(checkId(volumeId), checkId(restoreId));
  }

  async openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget> {
    const held = await this.#targets.connection(checkId(volumeId), checkId(restoreId));
    return openAttachedTarget(held, this.#places, this.#lengths.get(restoreId) ?? 0);
  }

  async openRestored(volumeId: string, restoreId: string): Promise<VolumeSource> {
    const held = await this.#targets.connection(checkId(volumeId), checkId(restoreId));
    return openAttachedSource(held, this.#places, restoreId);
  }

  async publishRestore(
    volumeId: string,
    restoreId: string,
    { properties }: { fresh: boolean; properties?: RestoredProperties },
  ): Promise<void> {
    await this.#targets.publish(checkId(volumeId), checkId(restoreId), properties);
    this.#lengths.delete(restoreId);
  }

  async copyRestore(volumeId: string): Promise<never> {
    throw new VolumeConflictError(`Volume ${volumeId} is restored in place.`);
  }

  async abandonRestore(restoreId: string, held?: HeldTarget): Promise<void> {
    this.#lengths.delete(checkId(restoreId));
    if (held) await this.#targets.release(restoreId, held);
  }

  importFile(): Promise<never> {
    return refuse("import volume");
  }

  importIfAbsent(): Promise<never> {
    return refuse("import volume");
  }

  statImport(): Promise<never> {
    return refuse("import volume");
  }

  exportFile(): Promise<never> {
    return refuse("export volume");
  }

  /** Clones and snapshots of ours. Targets belong to their owners, and the clean-up of their restore releases them. */
  async *leftovers(): AsyncGenerator<BackendLeftover> {
    for (const { backupId, volume } of await this.#reported(() => this.#clones.all())) {
      const modifiedAt = new Date(`${volume.created_at}Z`);
      yield { kind: "private", path: volume.name ?? volume.id, ids: [backupId], modifiedAt };
    }
    if (this.#direct) yield* this.#direct.leftovers();
  }

  async removeLeftover({ ids: [backupId] }: BackendLeftover): Promise<void> {
    if (backupId === undefined || (await this.#direct?.thaw(checkId(backupId), { backedUp: false }))) return;
    await this.#reported(() => this.#clones.remove(checkId(backupId))).catch((error: unknown) => {
      // Cinder is at it.
      if (!(error instanceof NotReadyYetError)) throw error;
    });
  }

  /** Where nobody comes back later, a Cinder that does not answer is a backend that is not there. */
  async #reported<Result>(call: () => Promise<Result>): Promise<Result> {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof NotReadyYetError) || error.cause === undefined) throw error;
      throw new VolumeStorageError(error.message, { cause: error, retryable: true });
    }
  }
}

async function refuse(operation: string): Promise<never> {
  throw new OperationNotSupportedError(operation, "volumes are made and removed by Cinder itself");
}

const opened = new WeakMap<CinderPlace, CinderBackend>();

/** Opens a `cinder` backend: one for each settings object, so that probes share its login. Asks nothing. */
export async function openCinderBackend(place: CinderPlace): Promise<CinderBackend> {
  const backend = opened.get(place) ?? new CinderBackend(place);
  opened.set(place, backend);
  return backend;
}
