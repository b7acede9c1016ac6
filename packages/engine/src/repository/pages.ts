import { RepositoryUnavailableError } from "../errors.ts";
import type { ListPage } from "./object-store.ts";

/**
 * A self-contradictory listing. Never treated as merely short: a rescan would miss backups, and a clean-up would take complete ones for
 * leftovers.
 */
export function contradiction(label: string, what: string, reason: string): RepositoryUnavailableError {
  return new RepositoryUnavailableError(
    `The repository ${label} contradicts itself (${reason}): the listing of ${what} cannot be relied on.`,
    { retryable: true },
  );
}

/**
 * The pages of a listing, one after the other. RepositoryUnavailableError when a page leads back to an earlier one, or the container
 * disappears during the listing. A container that is missing from the start is empty.
 */
export async function* pagesOf<Item>(
  read: (after: string | null) => Promise<ListPage<Item> | null>,
  { label, what }: { label: string; what: string },
): AsyncGenerator<Item[]> {
  const seen = new Set<string>();
  for (let after: string | null = null; ; ) {
    const page: ListPage<Item> | null = await read(after);
    if (page === null && after === null) return;
    if (page === null) throw contradiction(label, what, "it went away in the middle");
    yield page.items;
    if (page.next === null) return;
    if (seen.has(page.next)) throw contradiction(label, what, "a page leads back to an earlier one");
    seen.add(page.next);
    after = page.next;
  }
}
