import { getVolume, listSnapshots, type SnapshotRow } from "@tephra/control";
import type { Context } from "../context.ts";
import { type Call, type Handle, type Route, shown } from "./call.ts";
import { diskFormat } from "./disks.ts";
import { type Element, listOf, reference } from "./element.ts";
import { BareStatus } from "./faults.ts";
import { refuseFollow } from "./follow.ts";
import { storageDomainId } from "./storage-domains.ts";

/** Snapshots that a list has. */
const listedMax = 10_000;

type Row = Omit<SnapshotRow, "metadata">;

const statusOf = ({ status }: Row): string =>
  status === "available" || status === "backing-up" ? "ok" : status.startsWith("error") ? "illegal" : "locked";

/** The part of a disk that a snapshot keeps; its id is that of the layer. */
const view = (context: Context, row: Row, backend: string): Element => ({
  id: row.id,
  path: `/storagedomains/${storageDomainId(backend)}/disksnapshots/${row.id}`,
  fields: {
    actual_size: row.sizeBytes,
    alias: row.name ?? row.id,
    description: row.description ?? "",
    format: diskFormat(context, backend),
    image_id: row.id,
    provisioned_size: row.sizeBytes,
    status: statusOf(row),
    storage_type: "image",
    disk: reference("disks", row.volumeId),
    ...(row.groupSnapshotId !== null && { snapshot: { id: row.groupSnapshotId } }),
    storage_domains: listOf("storage_domain", [reference("storagedomains", storageDomainId(backend))]),
  },
});

async function snapshotsOf({ database }: Context, { principal }: Call, filter: { volumeId?: string; id?: string }) {
  const page = { sort: [{ key: "createdAt", direction: "asc" }], limit: listedMax, offset: 0 } as const;
  const query = { filter, allProjects: false, withCount: false, page };
  return (await listSnapshots(database, principal, query)).rows;
}

const listOfDisk: Handle = async (context, call) => {
  refuseFollow(call.follow);
  const volume = await getVolume(context.database, call.principal, call.params["id"] ?? "");
  const rows = await snapshotsOf(context, call, { volumeId: volume.id });
  return shown(
    "disk_snapshots",
    listOf(
      "disk_snapshot",
      rows.map((row) => view(context, row, volume.backend)),
    ),
  );
};

/** The backend that a storage domain is. @throws BareStatus 404 */
function backendOf({ config }: Context, { params }: Call): string {
  const id = params["domain"]?.toLowerCase();
  const found = config.volume_backends.find(({ name }) => storageDomainId(name) === id);
  if (!found) throw new BareStatus(404);
  return found.name;
}

const viewsIn = async (context: Context, call: Call, filter: { id?: string }): Promise<Element[]> => {
  refuseFollow(call.follow);
  const backend = backendOf(context, call);
  const rows = await snapshotsOf(context, call, filter);
  const where = { id: { in: rows.map(({ volumeId }) => volumeId) }, backend };
  const volumes = await context.database.volume.findMany({ where, select: { id: true } });
  const inDomain = new Set(volumes.map(({ id }) => id));
  return rows.filter(({ volumeId }) => inDomain.has(volumeId)).map((row) => view(context, row, backend));
};

const listInDomain: Handle = async (context, call) =>
  shown("disk_snapshots", listOf("disk_snapshot", await viewsIn(context, call, {})));

const showInDomain: Handle = async (context, call) => {
  const [found] = await viewsIn(context, call, { id: call.params["layer"]?.toLowerCase() ?? "" });
  if (!found) throw new BareStatus(404);
  return shown("disk_snapshot", found);
};

/** What snapshots keep of disks. */
export const diskSnapshotRoutes: readonly Route[] = [
  ["GET", "/disks/:id/disksnapshots", "ovirt:get", listOfDisk],
  ["GET", "/storagedomains/:domain/disksnapshots", "ovirt:get", listInDomain],
  ["GET", "/storagedomains/:domain/disksnapshots/:layer", "ovirt:get", showInDomain],
];
