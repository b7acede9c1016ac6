import { RepositoryUnavailableError } from "../errors.ts";
import type { ListPage } from "./object-store.ts";

/** A listing that contradicts itself. Never taken for a short one: a rescan would miss backups, a removal take whole ones for remains. */
export function contradiction(label: string, what: string, reason: string): RepositoryUnavailableError {
  return new RepositoryUnavailableError(
    `The repository ${label} contradicts itself (${reason}): the listing of ${what} cannot be relied on.`,
    { retryable: true },
  );
}

/**
 * The pages of a listing, one after the other. RepositoryUnavailableError when a page leads back to one that was seen, or the container
 * is missing once it was there. A container that is missing from the start is empty.
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
