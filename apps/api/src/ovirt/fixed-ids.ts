import { createHash, randomBytes } from "node:crypto";

/** The last characters of an id of a job that had ended when its action was answered: nobody has to keep it. */
const endedMark = "6a6f62000000";

/** The id of a job that has ended now. The first 48 bits are the time, in milliseconds. */
export function endedJobId(): string {
  const time = Date.now().toString(16).padStart(12, "0");
  const random = randomBytes(4).toString("hex");
  const parts = [time.slice(0, 8), time.slice(8), `8${random.slice(0, 3)}`, `8${random.slice(3, 6)}`, endedMark];
  return parts.join("-");
}

/** When a job of `endedJobId` ended; null for other ids. */
export function endOfJob(id: string): Date | null {
  const [high = "", low = "", , , mark] = id.toLowerCase().split("-");
  return /^[\da-f]{12}$/.test(high + low) && mark === endedMark ? new Date(Number.parseInt(high + low, 16)) : null;
}

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
