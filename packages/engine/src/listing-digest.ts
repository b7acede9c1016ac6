import { createHash } from "node:crypto";

const modulus = 2n ** 256n;

/**
 * A digest of a set of names with their stored sizes that does not depend on the order in which they are seen: the sum of
 * SHA-256(name, NUL, size in decimal) modulo 2^256. So a listing of any length is compared in constant memory.
 */
export class ListingDigest {
  #sum = 0n;
  #count = 0;

  add(name: string, storedBytes: number): void {
    const digest = createHash("sha256").update(`${name}\0${storedBytes}`).digest("hex");
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
