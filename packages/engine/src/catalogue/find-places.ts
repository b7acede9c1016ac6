import { prefixOf, readDatedPrefix } from "@tephra/format";
import { dataNumber, hashListName, keyVersion, metadataName } from "../format/layout.ts";
import type { OnPassedOver } from "../repository/passed-over.ts";
import type { Repository } from "../repository/repository.ts";
import { isOnlyHere, isStored, listContainer } from "./list-backups.ts";

/** One backup's objects in a container, as found in a listing. */
export interface ListedPlace {
  container: string;
  prefix: string;
  /** The complete backup id in the object names. */
  backupId: string;
  objects: number;
  /** Whether the metadata object exists, which makes it a backup. */
  whole: boolean;
  /** When its newest object was stored, or the start time in its name if that is later. */
  modifiedAt: Date;
}

/**
 * Finds complete and incomplete backups in some containers. Objects whose names do not match exactly the pattern with a full id and a
 * time are skipped, as is anything that cannot be listed. A backup whose listing lacks the metadata is looked up by name. Memory: a small
 * record for each backup of one container.
 */
export async function* findPlaces(
  repository: Repository,
  containers: Iterable<string> | AsyncIterable<string>,
  signal: AbortSignal,
  onPassedOver: OnPassedOver = () => {},
): AsyncGenerator<ListedPlace> {
  for await (const container of containers) {
    const places = new Map<string, ListedPlace>();
    for await (const { name, modifiedAt } of listContainer(repository, container, onPassedOver)) {
      signal.throwIfAborted();
      const prefix = prefixOf(name);
      if (prefix === null || !isNameOf(prefix, name)) continue;
      const place = places.get(prefix) ?? newPlace(container, prefix);
      if (place === null) continue;
      places.set(prefix, place);
      place.objects += 1;
      place.whole ||= name === metadataName(prefix);
      if (modifiedAt > place.modifiedAt) place.modifiedAt = modifiedAt;
    }
    for (const place of places.values()) {
      // The listing may lag or be incomplete, so the metadata object is looked up by name.
      try {
        place.whole ||= await isStored({ repository, container, prefix: place.prefix });
      } catch (error) {
        if (!(await isOnlyHere(repository, error))) throw error;
        onPassedOver(`${container}/${metadataName(place.prefix)}`, (error as Error).message);
        continue;
      }
      yield place;
    }
  }
}

function isNameOf(prefix: string, name: string): boolean {
  if (name === metadataName(prefix) || name === hashListName(prefix)) return true;
  return dataNumber(prefix, name) !== null || keyVersion(prefix, name) !== null;
}

/** Null for a prefix without a time or a complete id. */
function newPlace(container: string, prefix: string): ListedPlace | null {
  const dated = readDatedPrefix(prefix);
  if (dated === null) return null;
  return { container, prefix, backupId: dated.backupId, objects: 0, whole: false, modifiedAt: dated.begunAt };
}
