import { stat } from "node:fs/promises";

/** How long a file is assumed unchanged after a check. */
const trustedMs = 1000;

/**
 * The contents of a file that others replace during use: expiring keys, certificates. Read on first use, and again when the file has
 * changed. If it cannot be read while being replaced, the previous contents remain in use.
 */
export class RenewedFile<Contents> {
  readonly #path: string;
  readonly #read: (path: string) => Promise<Contents>;
  #known: { contents: Contents; stamp: string } | null = null;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #running: Promise<Contents> | null = null;

  /** `read` throws when the file cannot be read or is invalid. */
  constructor(path: string, read: (path: string) => Promise<Contents>) {
    this.#path = path;
    this.#read = read;
  }

  /** Contents at most a second old. Throws what `read` throws when nothing was read yet. */
  async current(): Promise<Contents> {
    if (this.#known !== null && performance.now() - this.#lookedAt < trustedMs) return this.#known.contents;
    return this.reread();
  }

  /** The file's current contents. */
  reread(): Promise<Contents> {
    this.#running ??= this.#look().finally(() => {
      this.#running = null;
    });
    return this.#running;
  }

  async #look(): Promise<Contents> {
    this.#lookedAt = performance.now();
    try {
      const status = await stat(this.#path, { bigint: true }).catch(() => null); // `read` reports the failure better.
      const stamp = `${status?.mtimeNs} ${status?.ino} ${status?.size}`;
      if (this.#known?.stamp === stamp) return this.#known.contents;
      const contents = await this.#read(this.#path);
      this.#known = { contents, stamp };
      return contents;
    } catch (error) {
      if (this.#known !== null) return this.#known.contents;
      throw error;
    }
  }
}
