/** A connection to an export. */
export interface NbdPlace {
  readonly nbd: number;
  /** Whether zeros need not be sent to the server. */
  readonly writesZeroes: boolean;
}

/** What a thread reads or writes: an open file, or a connection to an export. It stays open until the response arrives. */
export type ThreadPlace = { readonly descriptor: number } | NbdPlace;
