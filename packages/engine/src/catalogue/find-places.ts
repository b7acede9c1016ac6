import { prefixOf, readDatedPrefix } from "@tephra/format";
import { dataNumber, hashListName, keyVersion, metadataName } from "../format/layout.ts";
import type { OnPassedOver } from "../repository/passed-over.ts";
import type { Repository } from "../repository/repository.ts";
import { isOnlyHere, isStored, listContainer } from "./list-backups.ts";

/** The objects of one backup in a container, as a listing shows them. */
export interface ListedPlace {
  container: string;
  prefix: string;
  /** The id in their names, always a whole one. */
  backupId: string;
  objects: number;
  /** Whether the metadata is there: then it is a backup. */
  whole: boolean;
  /** When the youngest of them was stored, or when the backup was begun by its name if that is later. */
  modifiedAt: Date;
}

/**
 * What there is of backups in some containers, whole or not. Objects whose names are not exactly those that a backup with a full id and a
 * time has are passed over, and so is what cannot be listed. One that the listing shows without its metadata is asked for by name. Holds a little
 * for each backup of one container in memory.
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
      // A listing may be behind, or not say all: whether it is a backup is asked by name.
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

/** Null for a prefix without a time or a whole id. */
function newPlace(container: string, prefix: string): ListedPlace | null {
  const dated = readDatedPrefix(prefix);
  if (dated === null) return null;
  return { container, prefix, backupId: dated.backupId, objects: 0, whole: false, modifiedAt: dated.begunAt };
}
