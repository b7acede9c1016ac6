import { stat } from "node:fs/promises";

/** How long a file that was looked at is believed to be as it was. */
const trustedMs = 1000;

/**
 * What stands in a file that others renew while it is in use: keys that run out, certificates. Read when first asked for, and again when
 * the file has changed. While it is being replaced and cannot be read, what was read before still holds.
 */
export class RenewedFile<Contents> {
  readonly #path: string;
  readonly #read: (path: string) => Promise<Contents>;
  #known: { contents: Contents; stamp: string } | null = null;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #running: Promise<Contents> | null = null;

  /** `read` throws for what cannot be read or is not what it should be. */
  constructor(path: string, read: (path: string) => Promise<Contents>) {
    this.#path = path;
    this.#read = read;
  }

  /** At most a second old. Throws what `read` throws when nothing was read yet. */
  async current(): Promise<Contents> {
    if (this.#known !== null && performance.now() - this.#lookedAt < trustedMs) return this.#known.contents;
    return this.reread();
  }

  /** As the file is now. */
  reread(): Promise<Contents> {
    this.#running ??= this.#look().finally(() => {
      this.#running = null;
    });
    return this.#running;
  }

  async #look(): Promise<Contents> {
    this.#lookedAt = performance.now();
    try {
      const status = await stat(this.#path, { bigint: true }).catch(() => null); // `read` says it in better words.
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
