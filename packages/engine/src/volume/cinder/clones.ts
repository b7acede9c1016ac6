import { hostname } from "node:os";
import type { CinderAttachment, CinderProject, CinderVolume } from "@tephra/openstack";
import { SourceMissingError, VolumeStorageError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { askCinder, type CinderPatience, waitFor } from "./ask-cinder.ts";
import type { InitiatorOf } from "./connector.ts";
import type { Attached } from "./connectors.ts";

const prefix = "tephra-backup-";
/** Keys of the metadata of all that we make: of which backup, and whose. */
const ofBackup = "tephra_backup";
const ofInstallation = "tephra_installation";

/** Statuses of a clone with its bytes. */
const whole = ["available", "in-use", "reserved", "attaching", "detaching"];

/** Statuses in which Cinder deletes a volume. */
const deletable = ["available", "error", "error_restoring", "error_extending", "error_managing"];

/** How long it is taken for true that a clone is attached, in ms. */
const attachedForMs = 60_000;

/** A clone that is attached, with what leads to its bytes. */
type AttachedClone = Attached & { clone: CinderVolume };

/** What we call ourselves to Cinder and to the storage. `initiator`: to a target of iSCSI. */
export const connectorHere = (initiator: string): Record<string, unknown> => ({
  initiator,
  host: hostname(),
  ip: "127.0.0.1",
  platform: process.arch === "x64" ? "x86_64" : process.arch,
  os_type: "linux",
  multipath: false,
});

/**
 * Clones of volumes in the service project, one for each backup, found again by name and metadata: the only objects that backups make in
 * Cinder. What lacks either, or is another installation's, is not ours.
 */
export class Clones {
  readonly #cinder: CinderProject;
  readonly #installation: () => Promise<string>;
  readonly #patience: CinderPatience;
  readonly #initiator: InitiatorOf;
  /** By backup, and in memory alone: it may contain passwords. */
  readonly #known = new Map<string, { attached: AttachedClone; until: number }>();

  constructor(
    cinder: CinderProject,
    of: { installation: () => Promise<string>; patience: CinderPatience; initiator: InitiatorOf },
  ) {
    this.#cinder = cinder;
    this.#installation = of.installation;
    this.#patience = of.patience;
    this.#initiator = of.initiator;
  }

  #ask<Result>(what: string, call: () => Promise<Result>): Promise<Result> {
    return askCinder(what, this.#patience, call);
  }

  /** All of a backup, the oldest first. */
  async of(backupId: string): Promise<CinderVolume[]> {
    const name = prefix + backupId;
    const installation = await this.#installation();
    const metadata = { [ofBackup]: backupId, [ofInstallation]: installation };
    const found = await this.#ask("list clones", () => this.#cinder.volumes({ name, metadata }));
    return found.filter((volume) => isOurs(volume, backupId, installation));
  }

  /** All there are, with the id of the backup. */
  async all(): Promise<{ backupId: string; volume: CinderVolume }[]> {
    const installation = await this.#installation();
    const metadata = { [ofInstallation]: installation };
    const found = await this.#ask("list clones", () => this.#cinder.volumes({ metadata }));
    return found.flatMap((volume) => {
      const backupId = volume.metadata[ofBackup] ?? "";
      return isOurs(volume, backupId, installation) ? [{ backupId, volume }] : [];
    });
  }

  /** A clone with its bytes: the oldest there is, or a new one. NotReadyYetError while it is being made. */
  async make(
    backupId: string,
    source: { volumeId: string; from?: string | undefined },
    run: RunContext,
  ): Promise<CinderVolume> {
    const found = await this.of(backupId);
    const good = found.find(({ status }) => whole.includes(status));
    if (good) return good;
    const making = found.find(({ status }) => status === "creating" || status === "downloading");
    if (making) throw this.#waiting(making);
    const failed = found.find(({ status }) => status === "error");
    if (failed) {
      const [why] = await this.#ask("list messages", () => this.#cinder.messages(failed.id));
      throw new VolumeStorageError(`Cinder could not clone the volume: ${why ?? "its clone is in error"}`, {
        retryable: false,
      });
    }
    const installation = await this.#installation();
    run.signal.throwIfAborted();
    run.fence();
    const made = await this.#ask("clone the volume", () =>
      this.#cinder.createVolume({
        ...(source.from === undefined ? { source_volid: source.volumeId } : { snapshot_id: source.from }),
        name: prefix + backupId,
        metadata: { [ofBackup]: backupId, [ofInstallation]: installation },
      }),
    );
    throw this.#waiting(made);
  }

  #waiting(clone: CinderVolume): Error {
    const since = Math.max(0, Date.now() - Date.parse(`${clone.created_at}Z`));
    return waitFor(
      `Waiting for Cinder to clone the volume (${clone.id} is ${clone.status})`,
      since,
      this.#patience.cloneMs,
    );
  }

  /** Attaches the clone of a backup, for any worker to read it: by the attachment that is there, or by a new one. */
  async attach(backupId: string, clone: CinderVolume): Promise<AttachedClone> {
    const { connection_info: info } = await this.#attachmentOf(clone);
    const attached = { clone, info, initiator: this.#initiator(clone.id) };
    const now = performance.now();
    for (const [id, { until }] of this.#known) if (until < now) this.#known.delete(id);
    this.#known.set(backupId, { attached, until: now + attachedForMs });
    return attached;
  }

  async #attachmentOf(clone: CinderVolume): Promise<CinderAttachment> {
    const found = await this.#ask("list attachments", () => this.#cinder.attachmentsOf(clone.id));
    const attached = found.find(({ status }) => status === "attached");
    if (attached) return attached;
    // One that was begun and never completed leads nowhere.
    for (const { id } of found) await this.#ask("detach the clone", () => this.#cinder.detach(id));
    const made = await this.#ask("attach the clone", () =>
      this.#cinder.attach(clone.id, "ro", connectorHere(this.#initiator(clone.id))),
    );
    await this.#ask("attach the clone", () => this.#cinder.complete(made.id));
    return made;
  }

  /** The attached clone as Cinder has told of it a short while ago, which may not be true any more. */
  known(backupId: string): AttachedClone | null {
    const known = this.#known.get(backupId);
    return known && performance.now() < known.until ? known.attached : null;
  }

  forget(backupId: string): void {
    this.#known.delete(backupId);
  }

  /** The attached clone, as Cinder says now. SourceMissingError */
  async attached(backupId: string): Promise<AttachedClone> {
    const clone = (await this.of(backupId)).find(({ status }) => whole.includes(status));
    if (!clone) throw new SourceMissingError(`The clone ${prefix}${backupId} is gone.`);
    return this.attach(backupId, clone);
  }

  /** Removes all of a backup. NotReadyYetError until they are gone. */
  async remove(backupId: string): Promise<void> {
    this.forget(backupId);
    const found = await this.of(backupId);
    for (const clone of found) await this.#remove(clone);
    const first = found[0];
    if (first) throw waitFor(`Waiting for Cinder to delete the clone ${first.id}`, 0, this.#patience.deleteMs);
  }

  async #remove({ id, status }: CinderVolume): Promise<void> {
    if (status === "deleting" || status === "creating") return;
    for (const attachment of await this.#ask("list attachments", () => this.#cinder.attachmentsOf(id))) {
      await this.#ask("detach the clone", () => this.#cinder.detach(attachment.id));
    }
    if (await this.#isDeleted(id)) return;
    const { status: now } = await this.#ask("show the clone", () => this.#cinder.volume(id)).catch((error: unknown) => {
      if (error instanceof SourceMissingError) return { status: "deleting" };
      throw error;
    });
    if (now === "deleting") return;
    // Nothing is attached any more: what still says so is stuck.
    if (!deletable.includes(now)) {
      const reset = { "os-reset_status": { status: "error", attach_status: "detached" } };
      await this.#ask("reset the clone", () => this.#cinder.action(id, reset));
    }
    await this.#ask("delete the clone", () => this.#cinder.deleteVolume(id));
  }

  /** False where Cinder refuses. */
  async #isDeleted(id: string): Promise<boolean> {
    try {
      await this.#ask("delete the clone", () => this.#cinder.deleteVolume(id));
      return true;
    } catch (error) {
      if (error instanceof VolumeStorageError) return false;
      throw error;
    }
  }
}

const isOurs = ({ name, metadata }: CinderVolume, backupId: string, installation: string): boolean =>
  backupId !== "" &&
  name === prefix + backupId &&
  metadata[ofBackup] === backupId &&
  metadata[ofInstallation] === installation;
