import { ObjectMissingError } from "../errors.ts";
import { ListingDigest } from "../format/listing-digest.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { type BackupReference, damaged, keyOf } from "./backup-reference.ts";
import { verifyListing } from "./compare-listing.ts";

/**
 * Checks that every object of a chain exists with the right name and size, according to listings and metadata. A member whose listing
 * still matches one found complete before costs only that listing. DamagedObjectError for the first object that is missing or wrong:
 * nothing built on the chain could be restored. Throws when the repository cannot be read.
 */
export async function checkChain(
  engine: EngineContext,
  references: readonly BackupReference[],
  signal: AbortSignal,
): Promise<void> {
  for (const reference of references) await checkMember(engine.wholeListings, reference, signal);
}

async function checkMember(
  known: EngineContext["wholeListings"],
  reference: BackupReference,
  signal: AbortSignal,
): Promise<void> {
  const place = `${reference.repository.service} ${reference.container}/${reference.prefix}`;
  const listing = await digestOf(reference, signal);
  if (known.get(place) === listing) return;
  for (const { object, reason } of await verifyListing(reference, signal)) {
    // Object stores may list a new object late, so it is looked up by name.
    if (reason === "it is missing" && (await isThere(reference, object))) continue;
    throw damaged(reference, object, reason);
  }
  known.set(place, listing);
}

async function digestOf({ repository, container, prefix }: BackupReference, signal: AbortSignal): Promise<string> {
  const digest = new ListingDigest();
  for await (const { name, sizeBytes, modifiedAt } of repository.list(container, prefix)) {
    signal.throwIfAborted();
    digest.add(`${name}\0${modifiedAt.getTime()}`, sizeBytes);
  }
  return `${digest.count} ${digest.hex}`;
}

async function isThere(reference: BackupReference, name: string): Promise<boolean> {
  try {
    await reference.repository.stat(keyOf(reference, name));
    return true;
  } catch (error) {
    if (error instanceof ObjectMissingError) return false;
    throw error;
  }
}
