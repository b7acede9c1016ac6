import type { Config } from "@tephra/control";
import { Refusal } from "../http/refusals.ts";

/** Total bytes of user-supplied keys and values. */
function bytesOf(pairs: object): number {
  return Object.entries(pairs).reduce(
    (sum, [key, value]) => sum + Buffer.byteLength(key) + Buffer.byteLength(String(value)),
    0,
  );
}

/** Limits the number of pairs on one resource and their total size. @throws Refusal 413 */
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

/** Checks all metadata in a body, whatever the route: in the outermost object or one level below. @throws Refusal 413 */
export function checkMetadataOf(config: Pick<Config, "metadata">, body: unknown): void {
  if (typeof body !== "object" || body === null) return;
  for (const part of [body, ...Object.values(body)]) {
    const { metadata } = (part ?? {}) as { metadata?: unknown };
    if (typeof metadata === "object" && metadata !== null) assertMetadataFits(config, metadata);
  }
}
