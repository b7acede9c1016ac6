import { ObjectMissingError } from "../errors.ts";
import { ListingDigest } from "../format/listing-digest.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { type BackupReference, damaged, keyOf } from "./backup-reference.ts";
import { verifyListing } from "./compare-listing.ts";

/** Listings that were found to be whole, by their places. A worker sees few chains again and again. */
const knownMax = 10_000;

/**
 * Makes sure that all of a chain is there, as its listings and metadata tell: names and sizes. A member whose listing is the one that was
 * found whole before costs its listing alone. DamagedObjectError for the first object that is missing or wrong: whatever builds on the
 * chain could not be restored. Throws when the repository cannot be read.
 */
export async function checkChain(
  engine: EngineContext,
  references: readonly BackupReference[],
  signal: AbortSignal,
): Promise<void> {
  for (const reference of references) await checkMember(engine.wholeListings, reference, signal);
}

async function checkMember(known: Map<string, string>, reference: BackupReference, signal: AbortSignal): Promise<void> {
  const place = `${reference.repository.service} ${reference.container}/${reference.prefix}`;
  const listing = await digestOf(reference, signal);
  if (known.get(place) === listing) return;
  for (const { object, reason } of await verifyListing(reference, signal)) {
    // Services of objects may list a new one late: what answers to its name is there.
    if (reason === "it is missing" && (await isThere(reference, object))) continue;
    throw damaged(reference, object, reason);
  }
  if (known.size >= knownMax) known.clear();
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
