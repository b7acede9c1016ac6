import { metadataName } from "../format/layout.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import { type BackupReference, damaged } from "./backup-reference.ts";

/** An object of a chain and the parts of the volume that a restore takes from it. */
export interface MappedObject {
  /** Index into the chain, 0 is the newest. */
  layer: number;
  entry: ObjectEntry;
  /** Start and end in the volume, ascending, on block boundaries (the last end may be the volume's). Never empty. */
  segments: [number, number][];
}

/** No object spans a cut: a restore range may end there. */
export type MergeStep = { kind: "object"; object: MappedObject } | { kind: "cut"; at: number };

/** One layer of the chain: its entry stream and the current entry. */
interface Cursor {
  layer: number;
  batches: AsyncIterator<ObjectEntry[]>;
  batch: ObjectEntry[];
  index: number;
  current: ObjectEntry | null;
  segments: [number, number][];
}

/**
 * Merges a chain into one map in which every byte of the volume comes from the newest object that covers it. Each object is yielded once,
 * after its last segment; objects wholly covered by newer ones are never yielded. Memory holds only the objects at the current position,
 * one per layer. DamagedObjectError for holes that no object covers and for objects that do not start and end on a block boundary.
 */
export async function* mergeLayers(input: {
  references: readonly BackupReference[];
  /** The entries of each member, newest first. */
  layers: readonly AsyncIterator<ObjectEntry[]>[];
  volumeBytes: number;
  blockBytes: number;
}): AsyncGenerator<MergeStep> {
  const { references, volumeBytes, blockBytes } = input;
  const cursors: Cursor[] = input.layers.map((batches, layer) => {
    return { layer, batches, batch: [], index: 0, current: null, segments: [] };
  });
  try {
    for (const cursor of cursors) await advance(cursor);
    for (let at = 0; at < volumeBytes; ) {
      const cover = cursors.find((cursor) => cursor.current !== null && cursor.current.offset <= at);
      if (cover?.current == null) throw gap(references, at);
      const end = segmentEnd(cursors, cover, volumeBytes);
      if (at % blockBytes !== 0 || (end % blockBytes !== 0 && end !== volumeBytes)) throw ragged(references, cover);
      append(cover.segments, at, end);
      at = end;
      yield* passed(cursors, at);
      for (const cursor of cursors) await skipTo(cursor, at);
      if (at < volumeBytes && cursors.every((cursor) => cursor.current === null || cursor.current.offset >= at)) {
        yield { kind: "cut", at };
      }
    }
    yield* passed(cursors, Number.POSITIVE_INFINITY);
  } finally {
    for (const cursor of cursors) await cursor.batches.return?.();
  }
}

/** Where the object covering the current position stops being the newest. */
function segmentEnd(cursors: readonly Cursor[], cover: Cursor, volumeBytes: number): number {
  const entry = cover.current as ObjectEntry;
  let end = Math.min(entry.offset + entry.length, volumeBytes);
  for (const newer of cursors) {
    if (newer === cover) break;
    if (newer.current !== null) end = Math.min(end, newer.current.offset);
  }
  return end;
}

/** Yields the objects that end at or before `at`. */
function* passed(cursors: readonly Cursor[], at: number): Generator<MergeStep> {
  for (const cursor of cursors) {
    const entry = cursor.current;
    if (entry === null || entry.offset + entry.length > at || cursor.segments.length === 0) continue;
    yield { kind: "object", object: { layer: cursor.layer, entry, segments: cursor.segments } };
    cursor.segments = [];
  }
}

async function skipTo(cursor: Cursor, at: number): Promise<void> {
  while (cursor.current !== null && cursor.current.offset + cursor.current.length <= at) await advance(cursor);
}

async function advance(cursor: Cursor): Promise<void> {
  cursor.segments = [];
  while (cursor.index >= cursor.batch.length) {
    const next = await cursor.batches.next();
    if (next.done === true) {
      cursor.current = null;
      return;
    }
    cursor.batch = next.value;
    cursor.index = 0;
  }
  cursor.current = cursor.batch[cursor.index++] ?? null;
}

function append(segments: [number, number][], start: number, end: number): void {
  const last = segments.at(-1);
  if (last !== undefined && last[1] === start) last[1] = end;
  else segments.push([start, end]);
}

function gap(references: readonly BackupReference[], at: number): Error {
  const full = references.at(-1) as BackupReference;
  return damaged(full, metadataName(full.prefix), `no object of the chain covers byte ${at}`);
}

function ragged(references: readonly BackupReference[], cover: Cursor): Error {
  const reference = references[cover.layer] as BackupReference;
  const place = cover.current?.offset ?? 0;
  return damaged(
    reference,
    metadataName(reference.prefix),
    `the object at ${place} does not start and end with a block`,
  );
}
