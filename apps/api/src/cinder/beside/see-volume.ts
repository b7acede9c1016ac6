import { InvalidError, type SeenVolume } from "@tephra/control";
import {
  type Cinder,
  type CinderProject,
  CinderRefusedError,
  CinderUnavailableError,
  type CinderVolume,
} from "@tephra/openstack";
import type { Context } from "../../context.ts";
import { Refusal } from "../../http/refusals.ts";
import type { Call } from "../../openstack/call.ts";

type BesideContext = Pick<Context, "cinder">;

/** @throws where this installation has volumes of its own: such a route is not mounted then */
export function cinderOf({ cinder }: BesideContext): Cinder {
  if (cinder === null) throw new Error("there is no Cinder beside which this installation works");
  return cinder;
}

/** Cinder as the caller: it decides who sees and may do what. */
export const asCaller = (context: BesideContext, call: Call): CinderProject =>
  cinderOf(context).as(call.token, call.principal.projectId);

const unavailableText = "The Block Storage service is temporarily unavailable. Please try again later.";

/** Cinder's refusals are the caller's to read; where Cinder does not answer, that is 503. */
export async function passOn<Result>(asked: Promise<Result>): Promise<Result> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof CinderRefusedError) throw new Refusal(error.status, error.message);
    if (error instanceof CinderUnavailableError) throw new Refusal(503, unavailableText, { retryAfter: 5 });
    throw error;
  }
}

/** What is kept of a volume in the operation on it. */
export const seenOf = (volume: CinderVolume, call: Pick<Call, "principal">): SeenVolume => ({
  id: volume.id,
  projectId: volume["os-vol-tenant-attr:tenant_id"] ?? call.principal.projectId,
  userId: volume.user_id ?? call.principal.userId,
  sizeGib: volume.size,
  status: volume.status,
  availabilityZone: volume.availability_zone ?? "nova",
  name: volume.name ?? null,
  description: volume.description ?? null,
  bootable: volume.bootable,
  metadata: volume.metadata,
  imageMetadata: volume.volume_image_metadata ?? {},
  volumeType: volume.volume_type ?? null,
  multiattach: volume.multiattach,
  encrypted: volume.encrypted,
  createdAt: `${volume.created_at}Z`,
  seenAt: new Date().toISOString(),
});

/**
 * Looks a volume up with the caller's token, and its snapshot where one is named.
 *
 * @throws Refusal as Cinder words it, or 503; InvalidError when the snapshot is another volume's
 */
export async function seeVolume(
  context: BesideContext,
  call: Call,
  volumeId: string,
  snapshotId: string | null = null,
): Promise<SeenVolume> {
  const user = asCaller(context, call);
  const seen = seenOf(await passOn(user.volume(volumeId)), call);
  if (snapshotId === null) return seen;
  const { id, volume_id: owner, size, status, created_at: createdAt } = await passOn(user.snapshot(snapshotId));
  if (owner !== volumeId) {
    throw new InvalidError("volume", `Volume ${volumeId} does not match with snapshot.volume_id ${owner}.`);
  }
  return { ...seen, snapshot: { id, sizeGib: size, status, createdAt: `${createdAt}Z` } };
}
