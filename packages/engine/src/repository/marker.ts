import { randomUUID } from "node:crypto";
import { reservedContainer } from "@tephra/format";
import type { ObjectKey } from "./repository.ts";

/** The object that marks a place as a repository. Never created by accident. */
export const markerKey: ObjectKey = { container: reservedContainer, name: "repository.json" };
/** Upper bound on the size of a marker. */
export const markerBytesMax = 4096;

export function newMarker(): Uint8Array {
  return Buffer.from(`{"tephra_repository": 1, "id": "${randomUUID()}"}`);
}

/** The identity in a marker, or null when the text is not a marker. */
export function parseMarker(text: string): { id: string } | null {
  const id = /^\{"tephra_repository": 1, "id": "([0-9a-f-]{36})"\}$/.exec(text)?.[1];
  return id === undefined ? null : { id };
}
