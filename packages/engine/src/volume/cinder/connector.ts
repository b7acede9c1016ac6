import { VolumeStorageError } from "../../errors.ts";
import type { RbdPlace } from "../rbd/rbd-backend.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";

/** A cluster of Ceph's, and the pools of it where Cinder's volumes are. */
export interface CephPlace extends Omit<RbdPlace, "namespace"> {
  pools: readonly string[];
}

/** What is configured for opening what Cinder attaches. */
export interface ConnectorPlaces {
  /** Folders below which files may be that Cinder names as `local`. */
  localRoots: readonly string[];
  ceph: readonly CephPlace[];
  /** The folder where shares are mounted that Cinder names as `nfs`; null: nowhere. */
  nfsBase: string | null;
}

/** What Cinder says of an attachment: what to connect to, and secrets. */
export type ConnectionInfo = Record<string, unknown> | null | undefined;

/** Who writes a target, as its storage knows them. Kept with the target, so that the next run can shut the last one out. */
export interface Writers {
  /** Of an earlier run of the same restore; null: none has written. */
  readonly earlier: string | null;
  /** Before the first byte is written. */
  note(writer: string): Promise<void>;
}

/** Opens what an attachment of one type leads to. */
export interface Connector {
  /** `frozenAs`: its fingerprint, as nobody but us can write it. */
  openSource(info: ConnectionInfo, frozenAs: string): Promise<VolumeSource>;
  openTarget(info: ConnectionInfo, writers: Writers): Promise<VolumeTarget>;
}

/** Never with what it may contain: `connection_info` has secrets. */
export const refused = (why: string): VolumeStorageError =>
  new VolumeStorageError(`What Cinder says of the attachment cannot be used: ${why}.`, { retryable: false });
