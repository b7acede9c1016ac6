import { VolumeConflictError } from "../../errors.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { type ConnectionInfo, type Connector, type ConnectorPlaces, refused, type Writers } from "./connector.ts";
import { iscsi } from "./iscsi-connector.ts";
import { local } from "./local-connector.ts";
import { nfs } from "./nfs-connector.ts";
import { rbd } from "./rbd-connector.ts";

interface ConnectorKind {
  open(places: ConnectorPlaces): Connector;
  /** Whether a writer is shut out wherever it runs, so that another host may go on. */
  shutsOut: boolean;
}

const connectors: Readonly<Record<string, ConnectorKind>> = {
  local: { open: local, shutsOut: false },
  nfs: { open: nfs, shutsOut: false },
  rbd: { open: rbd, shutsOut: true },
  iscsi: { open: iscsi, shutsOut: false },
};

function kindOf(info: ConnectionInfo): ConnectorKind {
  const type = info?.["driver_volume_type"];
  const found = typeof type === "string" && Object.hasOwn(connectors, type) ? connectors[type] : undefined;
  if (found) return found;
  const known = Object.keys(connectors).join(", ");
  throw refused(
    typeof type === "string"
      ? `driver_volume_type ${JSON.stringify(type.slice(0, 40))} is none of ${known}`
      : "driver_volume_type is missing",
  );
}

/** What Cinder says of an attachment, and who we are to what it leads to. */
export interface Attached {
  info: ConnectionInfo;
  initiator: string;
}

/** See ConnectorKind. */
export const shutsOut = (info: ConnectionInfo): boolean => kindOf(info).shutsOut;

/** Opens an attached clone. VolumeStorageError for what cannot be used; PathNotAllowedError outside the roots. */
export async function openAttachedSource(
  { info, initiator }: Attached,
  places: ConnectorPlaces,
  frozenAs: string,
): Promise<VolumeSource> {
  return kindOf(info).open(places).openSource(info, { frozenAs, initiator });
}

/** Opens an attached target of at least `sizeBytes`. VolumeConflictError for one that is shorter. */
export async function openAttachedTarget(
  { info, initiator, writers }: Attached & { writers: Writers },
  places: ConnectorPlaces,
  sizeBytes: number,
): Promise<VolumeTarget> {
  const target = await kindOf(info).open(places).openTarget(info, { writers, initiator });
  if (target.sizeBytes >= sizeBytes) return target;
  await target[Symbol.asyncDispose]();
  throw new VolumeConflictError(`The volume has ${target.sizeBytes} bytes, too few for ${sizeBytes}.`);
}
