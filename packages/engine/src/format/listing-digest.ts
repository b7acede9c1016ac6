import { createHash } from "node:crypto";

const modulus = 2n ** 256n;

/**
 * An order-independent digest of a set of names with a text for each: the sum of SHA-256(name, NUL, text) modulo 2^256, where the text is
 * the stored size in decimal. Listings of any length are compared in constant memory.
 */
export class ListingDigest {
  #sum = 0n;
  #count = 0;

  add(name: string, stored: number | string): void {
    const digest = createHash("sha256").update(`${name}\0${stored}`).digest("hex");
    this.#sum = (this.#sum + BigInt(`0x${digest}`)) % modulus;
    this.#count++;
  }

  get count(): number {
    return this.#count;
  }

  get hex(): string {
    return this.#sum.toString(16).padStart(64, "0");
  }
}

/** The same digest of names with the MD5 of the stored bytes. */
export class Md5Digest {
  readonly #digest = new ListingDigest();
  #complete = true;

  add(name: string, md5: string | null): void {
    if (md5 === null) this.#complete = false;
    else this.#digest.add(name, md5);
  }

  /** Null unless the store reported an MD5 for every object. */
  get hex(): string | null {
    return this.#complete ? this.#digest.hex : null;
  }
}
