/** Repeatable random numbers (xorshift), so that a seed gives the same inputs everywhere. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  }

  /** An integer from 0 up to, but not including, `end`. */
  below(end: number): number {
    this.#state ^= this.#state << 13;
    this.#state >>>= 0;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    this.#state >>>= 0;
    return this.#state % end;
  }
}

const tokens = [
  '"',
  "\\",
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  "null",
  "true",
  "-1",
  "0",
  "1e999",
  "9007199254740993",
  "0.5",
  "\u0000",
  "\n",
  "../",
  "__proto__",
  "\\ud800",
  "=",
  "&",
  "%",
  "?",
  "//",
  "\u00ff",
  "18446744073709551616",
  '"version": "2"',
  '"length": 1, ',
  '"offset": 0, ',
  '"objects": [], ',
  '"sha256s": [], ',
  '"chunk_size": 512, ',
  '"id": "b", ',
  "[[[[[[[[",
  '{"a":{"a":',
  "none",
  "zstd",
  "bz2",
].map((token) => Buffer.from(token, "latin1"));

/** A valid input with some damage, or one that never was valid. */
export function mutate(seeds: readonly Buffer[], random: Random): Buffer {
  const pick = (): Buffer => seeds[random.below(seeds.length)] as Buffer;
  let bytes: Buffer = Buffer.from(pick());
  for (let edits = random.below(5); edits > 0; edits--) {
    const at = random.below(bytes.length + 1);
    const to = Math.min(bytes.length, at + random.below(1 + random.below(200)));
    switch (random.below(8)) {
      case 0:
        if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
        break;
      case 1:
        if (at < bytes.length) bytes[at] = random.below(256);
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(to)]);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, to), bytes.subarray(at)]);
        break;
      case 4:
        bytes = bytes.subarray(0, at);
        break;
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, at), pick().subarray(random.below(100))]);
        break;
      default: {
        const token = tokens[random.below(tokens.length)] as Buffer;
        const repeats = random.below(50) === 0 ? random.below(5000) : 1;
        bytes = Buffer.concat([
          bytes.subarray(0, at),
          ...Array.from({ length: repeats }, () => token),
          bytes.subarray(to),
        ]);
      }
    }
  }
  return bytes;
}
