/** What a thread reads or writes: an open file, or a connection to an export. It stays open until the response arrives. */
export type ThreadPlace = { readonly descriptor: number } | { readonly nbd: number };
