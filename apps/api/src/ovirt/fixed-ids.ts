import { createHash } from "node:crypto";

/** oVirt's own id of the template Blank and of the root of all tags. */
export const zeroId = "00000000-0000-0000-0000-000000000000";

/**
 * A UUID that is the same on every process and after every restart: for objects that are configured, or registered by a name, and have no
 * row of their own.
 */
export function fixedId(kind: string, name: string): string {
  const hex = createHash("sha256").update(`tephra ovirt ${kind}\0${name}`).digest("hex");
  const variant = ((Number.parseInt(hex.slice(16, 17), 16) & 3) | 8).toString(16);
  const parts = [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    variant + hex.slice(17, 20),
    hex.slice(20, 32),
  ];
  return parts.join("-");
}
