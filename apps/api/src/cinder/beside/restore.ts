import { setTimeout as sleep } from "node:timers/promises";
import {
  confirmRestore,
  InvalidError,
  installationId,
  type PreparedRestore,
  prepareRestore,
  rejectRestore,
  type SeenVolume,
} from "@tephra/control";
import { type CinderAttachment, CinderRefusedError, type CinderVolume } from "@tephra/openstack";
import type { Context } from "../../context.ts";
import { Refusal } from "../../http/refusals.ts";
import type { Call } from "../../openstack/call.ts";
import { asCaller, cinderOf, passOn, seenOf, seeVolume } from "./see-volume.ts";

/** A new volume is waited for in the request, as Cinder does itself. */
const createdWithinMs = 60_000;
const pollMs = 250;

/** Cinder has refused, and has surely made and reserved nothing. */
class NothingHeldError extends Error {}

/** What a new volume is to be, in Cinder's words; its metadata gets ours beside it for as long as the restore goes on. */
export interface NewTarget {
  fields: Readonly<Record<string, unknown>>;
  /** Null: as the backup's. */
  sizeGib: number | null;
}

/** The new volume of a restore that was asked for without one. */
const restoredAs = (backupId: string, name: string | null): NewTarget => ({
  fields: { name: name ?? `restore_backup_${backupId}`, description: "auto-created_from_restore_from_backup" },
  sizeGib: null,
});

/**
 * Restores to a volume of a Cinder: to a new one, which is made with the caller's token, so that its project, quota and refusals are Cinder's
 * own; or to an existing one. Either is reserved by an attachment without a connector before the restore is accepted.
 *
 * @throws NotFoundError, InvalidError, Refusal; then the backup is available again
 */
export async function restoreBeside(
  context: Context,
  call: Call,
  request: { backupId: string; volumeId: string | null; name: string | null; target?: NewTarget },
): Promise<{ backupId: string; volumeId: string; volumeName: string | null }> {
  const { database, config } = context;
  const { backupId, volumeId, name, target: wanted = restoredAs(backupId, name) } = request;
  const seen = volumeId === null ? null : await seeVolume(context, call, volumeId);
  const prepared = await prepareRestore(database, config, call.principal, { backupId, seen, sizeGib: wanted.sizeGib });
  try {
    const target = seen ?? (await makeTarget(context, call, prepared, wanted));
    const { id: hold } = await reserve(context, target, { isNew: seen === null });
    await confirmRestore(database, prepared, { volume: target, hold });
    return { backupId, volumeId: target.id, volumeName: target.name };
  } catch (error) {
    const nothingHeld = error instanceof NothingHeldError;
    const cause = nothingHeld ? error.cause : error;
    const reason = cause instanceof Error ? cause.message : String(cause);
    await rejectRestore(database, prepared, { reason, nothingHeld });
    throw cause;
  }
}

/** A refusal of the very call that would have made or reserved something. */
async function firstOf<Result>(asked: Promise<Result>): Promise<Result> {
  try {
    return await asked;
  } catch (error) {
    if (!(error instanceof CinderRefusedError)) return passOn(Promise.reject(error));
    throw new NothingHeldError("refused", { cause: new Refusal(error.status, error.message) });
  }
}

/** It bears the operation in its metadata until that is over: should this process die, it is found by that and removed. */
async function makeTarget(
  context: Context,
  call: Call,
  { operationId, backup }: PreparedRestore,
  { fields, sizeGib }: NewTarget,
): Promise<SeenVolume> {
  const user = asCaller(context, call);
  const made = await firstOf(
    user.createVolume({
      ...fields,
      size: sizeGib ?? backup.sizeGib,
      metadata: {
        ...(fields["metadata"] ?? {}),
        tephra_operation: operationId,
        tephra_installation: await installationId(context.database),
      },
    }),
  );
  let volume: CinderVolume = made;
  for (const until = performance.now() + createdWithinMs; volume.status === "creating"; ) {
    if (performance.now() > until) throw new Refusal(503, `Volume ${volume.id} is still being created.`);
    await sleep(pollMs);
    volume = await passOn(user.volume(made.id));
  }
  if (volume.status === "available") return seenOf(volume, call);
  throw new InvalidError("volume", `Error while creating volume ${volume.id} for the restore: it is ${volume.status}.`);
}

async function reserve(context: Context, target: SeenVolume, { isNew }: { isNew: boolean }): Promise<CinderAttachment> {
  const asked = cinderOf(context).service.attach(target.id, "rw");
  if (isNew) return passOn(asked);
  return asked.catch((error: unknown) => {
    if (!(error instanceof CinderRefusedError)) return passOn(Promise.reject(error));
    // Somebody was faster.
    const cause =
      error.status === 400
        ? new InvalidError("volume", "Volume to be restored to must be available")
        : new Refusal(error.status, error.message);
    throw new NothingHeldError("refused", { cause });
  });
}
