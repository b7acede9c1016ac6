import { hostname } from "node:os";
import type { CinderProject, CinderVolume } from "@tephra/openstack";
import { z } from "zod";
import { SourceMissingError, VolumeConflictError } from "../../errors.ts";
import { idsIn } from "../../format/ids-in.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { HeldTarget, RestoredProperties } from "../backend.ts";
import { askCinder, type CinderPatience, waitFor } from "./ask-cinder.ts";
import { connectorHere } from "./clones.ts";
import type { InitiatorOf, Writers } from "./connector.ts";
import { type Attached, shutsOut } from "./connectors.ts";

/** Keys in the metadata of a target while it is ours: how far a restore is, and, of a new volume, which operation has it made. */
const restoreKey = "tephra_restore";
const operationKey = "tephra_operation";
const installationKey = "tephra_installation";

/**
 * In at most 255 characters. `released`: it is the volume's again; `spoilt`: its status is to say that the restore failed. `writer`: who
 * writes, as the connector tells writers apart.
 */
const Noted = z.object({
  operation: z.guid(),
  hold: z.guid(),
  host: z.string(),
  state: z.enum(["writing", "released", "spoilt"]),
  writer: z.string().optional(),
});
type RestoreRecord = z.infer<typeof Noted>;

const hostHere = (): string => hostname().slice(0, 48);

function recordOf(volume: CinderVolume, operation: string): RestoreRecord | null {
  try {
    const record = Noted.parse(JSON.parse(volume.metadata[restoreKey] ?? ""));
    return record.operation === operation ? record : null;
  } catch {
    return null;
  }
}

/** The operation in the id of a restore. */
const operationIn = (restoreId: string): string => idsIn(restoreId)[0] ?? restoreId;

const brokenOff = () =>
  new VolumeConflictError("The attachment of the volume was removed while it was being restored.");

/** Cinder's names for volumes that it makes for a restore: the stored name replaces them (format 4.1). */
const madeForRestore = /^(restore_backup_.*)?$/s;

/**
 * Volumes that restores write in place. Each is held by an attachment of ours, which the API has made without a connector, and the volume's
 * owner may break off: so it is looked for before everything that is done. How far a restore is stands in the volume's metadata.
 */
export class HeldTargets {
  readonly #cinder: CinderProject;
  readonly #installation: () => Promise<string>;
  readonly #patience: CinderPatience;
  readonly #markRestoring: boolean;
  readonly #initiator: InitiatorOf;

  constructor(
    cinder: CinderProject,
    of: {
      installation: () => Promise<string>;
      patience: CinderPatience;
      initiator: InitiatorOf;
      markRestoring: boolean;
    },
  ) {
    this.#cinder = cinder;
    this.#installation = of.installation;
    this.#patience = of.patience;
    this.#markRestoring = of.markRestoring;
    this.#initiator = of.initiator;
  }

  #ask<Result>(what: string, call: () => Promise<Result>): Promise<Result> {
    return askCinder(what, this.#patience, call);
  }

  /** The volume as it is; null when its owner has deleted it. */
  async #volume(id: string): Promise<CinderVolume | null> {
    return this.#ask("show the volume", () => this.#cinder.volume(id)).catch((error: unknown) => {
      if (error instanceof SourceMissingError) return null;
      throw error;
    });
  }

  async #existing(id: string): Promise<CinderVolume> {
    const volume = await this.#volume(id);
    if (volume === null) throw new VolumeConflictError("The volume was deleted while it was being restored.");
    return volume;
  }

  async #note(volumeId: string, record: RestoreRecord): Promise<void> {
    await this.#ask("note the restore", () =>
      this.#cinder.setMetadata(volumeId, { [restoreKey]: JSON.stringify(record) }),
    );
  }

  /** Whether an earlier run has given the volume back. */
  async wasReleased(volumeId: string, restoreId: string): Promise<boolean> {
    const volume = await this.#volume(volumeId);
    return volume !== null && recordOf(volume, operationIn(restoreId))?.state === "released";
  }

  /** Connects the target to this host. */
  async begin(volumeId: string, restoreId: string, held: HeldTarget | undefined, run?: RunContext): Promise<void> {
    const operation = operationIn(restoreId);
    const volume = await this.#existing(volumeId);
    const record = recordOf(volume, operation);
    const hold = held?.hold ?? null;
    if (hold === null)
      throw new VolumeConflictError("The request ended before the volume was reserved. Restore again.");
    const attachment = await this.#ask("show the attachment", () => this.#cinder.attachment(hold));
    if (attachment === null) throw brokenOff();
    // Where nothing is noted of a writer that would have been, none has written.
    if (record !== null && record.host !== hostHere() && !shutsOut(attachment.connection_info)) {
      throw new VolumeConflictError(
        `A worker on host ${record.host} was lost while it was writing; make sure that it is gone, then restore again.`,
      );
    }
    run?.signal.throwIfAborted();
    run?.fence();
    await this.#note(volumeId, { ...record, operation, hold, host: hostHere(), state: "writing" });
    if (attachment.status === "reserved") {
      await this.#ask("attach the volume", () => this.#cinder.connect(hold, connectorHere(this.#initiator(hold))));
    }
    if (attachment.status !== "attached") await this.#ask("attach the volume", () => this.#cinder.complete(hold));
    if (!this.#markRestoring || volume.status === "restoring-backup") return;
    const mark = { "os-reset_status": { status: "restoring-backup" } };
    await this.#ask("mark the volume", () => this.#cinder.action(volumeId, mark));
  }

  /** What leads to the target's bytes. VolumeConflictError when its owner has taken it back, or nothing was begun. */
  async connection(volumeId: string, restoreId: string): Promise<Attached & { writers: Writers }> {
    const record = recordOf(await this.#existing(volumeId), operationIn(restoreId));
    if (record?.state !== "writing") throw new VolumeConflictError(`Volume ${volumeId} is not being restored.`);
    const attachment = await this.#ask("show the attachment", () => this.#cinder.attachment(record.hold));
    if (attachment === null) throw brokenOff();
    const note = (writer: string): Promise<void> => this.#note(volumeId, { ...record, writer });
    const writers = { earlier: record.writer ?? null, note };
    return { info: attachment.connection_info, initiator: this.#initiator(record.hold), writers };
  }

  /** Gives the volume back to its owner, with what was stored beside its bytes. */
  async publish(volumeId: string, restoreId: string, properties: RestoredProperties | undefined): Promise<void> {
    const volume = await this.#existing(volumeId);
    const record = recordOf(volume, operationIn(restoreId));
    if (record === null) throw new VolumeConflictError(`Volume ${volumeId} is not being restored.`);
    if (record.state === "writing") {
      const attachment = await this.#ask("show the attachment", () => this.#cinder.attachment(record.hold));
      if (attachment === null) throw brokenOff();
      if (properties) await this.#ask("describe the volume", () => this.#describe(volume, properties));
      await this.#note(volumeId, { ...record, state: "released" });
    }
    await this.#ask("release the volume", () => this.#cinder.detach(record.hold));
  }

  async #describe(volume: CinderVolume, properties: RestoredProperties): Promise<void> {
    const { id } = volume;
    const { name, description, metadata, bootable, imageMetadata } = properties;
    if (imageMetadata && Object.keys(imageMetadata).length > 0) {
      await this.#cinder.action(id, { "os-set_image_metadata": { metadata: imageMetadata } });
    }
    if (bootable && !volume.bootable) await this.#cinder.action(id, { "os-set_bootable": { bootable: true } });
    if (name !== null && madeForRestore.test(volume.name ?? "")) {
      await this.#cinder.updateVolume(id, { name, description });
    }
    if (metadata && Object.keys(metadata).length > 0) await this.#cinder.setMetadata(id, metadata);
  }

  /** After the end of a restore: whatever it holds is released, what it may have written in part says so. Repeating it changes nothing. */
  async release(restoreId: string, held: HeldTarget): Promise<void> {
    const operation = operationIn(restoreId);
    if (held.volumeId === null) return this.#removeUntold(operation);
    const volume = await this.#volume(held.volumeId);
    if (volume === null) return;
    const record = recordOf(volume, operation);
    const hold = record?.hold ?? held.hold;
    if (hold === null) return this.#releaseUntold(volume);
    if (record?.state !== "spoilt") {
      const attachment = await this.#ask("show the attachment", () => this.#cinder.attachment(hold));
      const isSpoilt = attachment !== null && (record?.state === "writing" || (record === null && held.isNew));
      if (isSpoilt) await this.#note(volume.id, { operation, hold, host: hostHere(), state: "spoilt" });
      await this.#ask("release the volume", () => this.#cinder.detach(hold));
      if (isSpoilt) await this.#spoil(volume.id);
    } else {
      await this.#ask("release the volume", () => this.#cinder.detach(hold));
      await this.#spoil(volume.id);
    }
    for (const key of [operationKey, installationKey, restoreKey].filter(
      (each) => each in volume.metadata || each === restoreKey,
    )) {
      await this.#ask("clear the metadata", () => this.#cinder.deleteMetadata(volume.id, key));
    }
  }

  async #spoil(volumeId: string): Promise<void> {
    const mark = { "os-reset_status": { status: "error_restoring" } };
    await this.#ask("mark the volume", () => this.#cinder.action(volumeId, mark));
  }

  /** New volumes whose request ended before anybody was told of them. */
  async #removeUntold(operation: string): Promise<void> {
    const installation = await this.#installation();
    const metadata = { [operationKey]: operation, [installationKey]: installation };
    const found = await this.#ask("list volumes", () => this.#cinder.volumes({ metadata, allProjects: true }));
    for (const volume of found) {
      if (volume.metadata[operationKey] !== operation || volume.metadata[installationKey] !== installation) continue;
      if (volume.status !== "creating" && volume.status !== "deleting") {
        await this.#releaseUntold(volume);
        await this.#ask("delete the volume", () => this.#cinder.deleteVolume(volume.id));
      }
      throw waitFor(`Waiting for Cinder to delete the volume ${volume.id}`, 0, this.#patience.deleteMs);
    }
  }

  /**
   * A reservation whose id was never noted: the only attachment of a volume that was available before, without a server and not completed.
   * Nova's have a server.
   */
  async #releaseUntold({ id, status }: CinderVolume): Promise<void> {
    if (status !== "reserved") return;
    const attachments = await this.#ask("list attachments", () => this.#cinder.attachmentsOf(id));
    const [only] = attachments;
    if (attachments.length !== 1 || !only || only.status !== "reserved" || only.instance || only.attach_mode !== "rw")
      return;
    await this.#ask("release the volume", () => this.#cinder.detach(only.id));
  }
}
