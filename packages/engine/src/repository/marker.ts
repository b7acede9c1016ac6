import { randomUUID } from "node:crypto";
import { reservedContainer } from "@tephra/format";
import type { ObjectKey } from "./repository.ts";

/** The object that makes a place a repository. Never created by accident. */
export const markerKey: ObjectKey = { container: reservedContainer, name: "repository.json" };
/** No marker is longer. */
export const markerBytesMax = 4096;

export function newMarker(): Uint8Array {
  return Buffer.from(`{"tephra_repository": 1, "id": "${randomUUID()}"}`);
}

/** The identity in a marker, or null when the bytes are none. */
export function parseMarker(text: string): { id: string } | null {
  const id = /^\{"tephra_repository": 1, "id": "([0-9a-f-]{36})"\}$/.exec(text)?.[1];
  return id === undefined ? null : { id };
}
