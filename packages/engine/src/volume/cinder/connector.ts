import { VolumeStorageError } from "../../errors.ts";
import type { RbdPlace } from "../rbd/rbd-backend.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";

/** A cluster of Ceph's, and the pools of it where Cinder's volumes are. */
export interface CephPlace extends Omit<RbdPlace, "namespace"> {
  pools: readonly string[];
  /** Whose volumes are snapshotted here and not cloned: patterns of Cinder's `HOST@BACKEND`, in which `*` is anything. */
  direct_hosts: readonly string[];
}

/** What is configured for opening what Cinder attaches. */
export interface ConnectorPlaces {
  /** Folders below which files may be that Cinder names as `local`. */
  localRoots: readonly string[];
  ceph: readonly CephPlace[];
  /** The folder where shares are mounted that Cinder names as `nfs`; null: nowhere. */
  nfsBase: string | null;
  /** Addresses, and subnets in CIDR notation, where portals may be that Cinder names as `iscsi`. */
  iscsiPortals: readonly string[];
  /** A folder of this host for locks on what its storage does not lock. */
  lockFolder: string;
}

/** Who we are to the target behind an attachment: of a clone by its id, of a volume that is written by the attachment's. */
export type InitiatorOf = (id: string) => string;

/** What Cinder says of an attachment: what to connect to, and secrets. */
export type ConnectionInfo = Record<string, unknown> | null | undefined;

/** Who writes a target, as its storage knows them. Kept with the target, so that the next run can shut the last one out. */
export interface Writers {
  /** Of an earlier run of the same restore; null: none has written. */
  readonly earlier: string | null;
  /** Before the first byte is written. */
  note(writer: string): Promise<void>;
}

/** Opens what an attachment of one type leads to. `initiator`: who we are to it, as Cinder was told when it was made. */
export interface Connector {
  /** `frozenAs`: its fingerprint, as nobody but us can write it. */
  openSource(info: ConnectionInfo, as: { frozenAs: string; initiator: string }): Promise<VolumeSource>;
  openTarget(info: ConnectionInfo, as: { writers: Writers; initiator: string }): Promise<VolumeTarget>;
}

/** Never with what it may contain: `connection_info` has secrets. */
export const refused = (why: string): VolumeStorageError =>
  new VolumeStorageError(`What Cinder says of the attachment cannot be used: ${why}.`, { retryable: false });
