import type { Config } from "@tephra/control";
import { Refusal } from "../http/refusals.ts";

/** Pairs that users have written; what has other values is none. */
function bytesOf(pairs: object): number {
  return Object.entries(pairs).reduce(
    (sum, [key, value]) => sum + Buffer.byteLength(key) + Buffer.byteLength(String(value)),
    0,
  );
}

/** How many pairs one resource may have, and how long they may be together. @throws Refusal 413 */
export function assertMetadataFits<Pairs extends object>(
  { metadata: limits }: Pick<Config, "metadata">,
  pairs: Pairs,
): Pairs {
  const [count, bytes] = [Object.keys(pairs).length, bytesOf(pairs)];
  if (limits.items_max >= 0 && count > limits.items_max) {
    const text = `MetadataLimitExceeded: Maximum number of metadata items exceeds ${limits.items_max}`;
    throw new Refusal(413, text, { retryAfter: 0 });
  }
  if (bytes <= limits.bytes_max) return pairs;
  const text = `MetadataLimitExceeded: Metadata of ${bytes} bytes exceeds ${limits.bytes_max}`;
  throw new Refusal(413, text, { retryAfter: 0 });
}

/** All metadata in a body, whichever route it is sent to: it stands in the outermost object or one within. @throws Refusal 413 */
export function checkMetadataOf(config: Pick<Config, "metadata">, body: unknown): void {
  if (typeof body !== "object" || body === null) return;
  for (const part of [body, ...Object.values(body)]) {
    const { metadata } = (part ?? {}) as { metadata?: unknown };
    if (typeof metadata === "object" && metadata !== null) assertMetadataFits(config, metadata);
  }
}
