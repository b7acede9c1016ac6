import {
  cancelImageTransfer,
  extendImageTransfer,
  finalizeImageTransfer,
  getImageTransfer,
  type ImageTransfer,
  type ImageTransferRequest,
  listImageServers,
  listImageTransfers,
  pauseImageTransfer,
  requestImageTransfer,
  resumeImageTransfer,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { type Call, created, done, type Handle, type Route, shown } from "./call.ts";
import { type Element, listOf, reference } from "./element.ts";
import { incomplete } from "./faults.ts";
import { refuseFollow } from "./follow.ts";
import { hostIdOf } from "./infrastructure.ts";
import { type Searchable, searched } from "./search.ts";

const actions = ["cancel", "extend", "finalize", "pause", "resume"];

const backupOf = ({ backupId, storedBackupId }: ImageTransfer): Element | null => {
  const id = backupId ?? storedBackupId;
  return id === null ? null : { id };
};

/** Clients read the disk from `disk`, from `image`, or from neither. URLs are there while a client may use them. */
const view = (transfer: ImageTransfer): Element => ({
  id: transfer.id,
  path: `/imagetransfers/${transfer.id}`,
  actions,
  fields: {
    active: transfer.active,
    direction: transfer.direction,
    format: transfer.format,
    inactivity_timeout: transfer.inactivityTimeout,
    phase: transfer.status,
    shallow: transfer.shallow,
    timeout_policy: transfer.timeoutPolicy,
    transferred: transfer.transferred,
    proxy_url: transfer.url,
    transfer_url: transfer.url,
    host: reference("hosts", hostIdOf(transfer.serverHost)),
    image: { id: transfer.volumeId },
    disk: reference("disks", transfer.volumeId),
    backup: backupOf(transfer),
    snapshot: transfer.snapshotId === null ? null : { id: transfer.snapshotId },
  },
});

/** The name of the host that the request names by its id; null: any. */
async function hostNamed({ database, config }: Context, { body }: Call): Promise<string | null> {
  const id = body.at("host")?.id?.toLowerCase();
  if (id === undefined) return null;
  const servers = await listImageServers(database, config);
  return servers.find(({ host }) => hostIdOf(host) === id)?.host ?? null;
}

/** What a transfer is asked for: a backup, the disk of a snapshot, or a disk. */
function subjectOf({ body }: Call): ImageTransferRequest["subject"] {
  const volumeId = (body.at("disk")?.id ?? body.at("image")?.id)?.toLowerCase();
  const idOf = (name: string): string | undefined => body.at(name)?.id?.toLowerCase();
  if (body.has("backup")) {
    const backupId = idOf("backup");
    if (backupId === undefined) throw incomplete("ImageTransfer", ["backup.id"], "add");
    return { backupId, volumeId: volumeId ?? null };
  }
  const snapshotId = idOf("snapshot");
  if (snapshotId !== undefined) return { snapshotId };
  if (volumeId === undefined) throw incomplete("ImageTransfer", ["disk.id"], "add");
  return { volumeId };
}

const addTransfer: Handle = async (context, call) => {
  const { body } = call;
  const secondsMax = 2_147_483_647;
  const transfer = await requestImageTransfer(context.database, context.config, call.principal, {
    subject: subjectOf(call),
    direction: body.oneOf(["direction"], ["upload", "download"]) ?? "upload",
    format: body.oneOf<"raw" | "cow">(["format"], ["raw", "cow"]) ?? null,
    timeoutPolicy: body.oneOf(["timeout_policy"], ["legacy", "pause", "cancel"]) ?? "legacy",
    inactivityTimeout: body.integer(["inactivity_timeout"], { min: 0, max: secondsMax }) ?? null,
    host: await hostNamed(context, call),
  });
  return created("image_transfer", view(transfer), false);
};

const searchable: Searchable<ImageTransfer> = {
  fields: {
    id: ({ id }) => [id],
    phase: ({ status }) => [status],
    direction: ({ direction }) => [direction],
    disk: ({ volumeId }) => [volumeId],
  },
  bare: ["phase"],
};

const listTransfers: Handle = async ({ database, config }, call) => {
  refuseFollow(call.follow);
  const transfers = await listImageTransfers(database, config, call.principal);
  return shown("image_transfers", listOf("image_transfer", searched(call, transfers, searchable).map(view)));
};

const idOf = ({ params }: Call): string => params["id"] ?? "";

const showTransfer: Handle = async ({ database, config }, call) => {
  refuseFollow(call.follow);
  return shown("image_transfer", view(await getImageTransfer(database, config, call.principal, idOf(call))));
};

const acting =
  (act: (context: Context, call: Call, id: string) => Promise<void>): Handle =>
  async (context, call) => {
    await act(context, call, idOf(call));
    return done();
  };

const cancel = acting(({ database }, { principal }, id) => cancelImageTransfer(database, principal, id));
const extend = acting(({ database }, { principal }, id) => extendImageTransfer(database, principal, id));
const finalize = acting(({ database }, { principal }, id) => finalizeImageTransfer(database, principal, id));
const pause = acting(({ database }, { principal }, id) => pauseImageTransfer(database, principal, id));
const resume = acting(({ database, config }, { principal }, id) =>
  resumeImageTransfer(database, config, principal, id),
);

/** Sessions in which a client reads or writes a disk; the bytes go past this API (ovirt 7). */
export const imageTransferRoutes: readonly Route[] = [
  ["GET", "/imagetransfers", "ovirt:get", listTransfers],
  ["POST", "/imagetransfers", "ovirt:change", addTransfer],
  ["GET", "/imagetransfers/:id", "ovirt:get", showTransfer],
  ["ACTION", "/imagetransfers/:id/cancel", "ovirt:change", cancel],
  ["ACTION", "/imagetransfers/:id/extend", "ovirt:change", extend],
  ["ACTION", "/imagetransfers/:id/finalize", "ovirt:change", finalize],
  ["ACTION", "/imagetransfers/:id/pause", "ovirt:change", pause],
  ["ACTION", "/imagetransfers/:id/resume", "ovirt:change", resume],
];
