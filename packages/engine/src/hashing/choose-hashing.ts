import { type HashingChoice, openHashing, opensslChoice, type Span } from "./hashing.ts";
import { availablePaths, loadNative } from "./native.ts";

/** Which implementation to use: the faster one by measurement, or a fixed one regardless of speed. */
export type HashingOption = "auto" | "openssl" | "native";

/** As many blocks as there are lanes; long enough to detect a factor of two. */
const probeBytes = 128 * 1024;
const probeBlockBytes = 8 * 1024;
const probes = 3;

/**
 * The fastest hashing on this machine, by a short measurement (about 3 ms). "native" takes the fastest native path even where OpenSSL is
 * faster, and throws where there is none.
 */
export function chooseHashing(option: HashingOption = "auto"): HashingChoice {
  const addon = option === "openssl" ? null : loadNative();
  if (addon === null) {
    if (option === "native") throw new Error("Native hashing was asked for, but its library is not there.");
    return opensslChoice;
  }
  const paths = availablePaths(addon);
  const native = option === "native";
  const sha256 = paths.filter((path) => path !== "plain");
  const md5 = paths.filter((path) => path === "avx2" || path === "avx512");
  if (native && (sha256.length === 0 || md5.length === 0)) {
    throw new Error("Native hashing was asked for, but this processor has neither AVX2 nor AVX-512.");
  }
  const data = new Uint8Array(probeBytes).fill(0x5a);
  return {
    sha256: fastest(native ? sha256 : ["openssl", ...sha256], (choice) => sha256Probe(choice, data)),
    md5: fastest(native ? md5 : ["openssl", ...md5], (choice) => md5Probe(choice, data)),
  };
}

function fastest<Choice>(choices: readonly Choice[], prepare: (choice: Choice) => () => void): Choice {
  const timed = choices.map((choice) => {
    const probe = prepare(choice);
    let best = Number.POSITIVE_INFINITY;
    for (let round = 0; round < probes; round++) {
      const started = performance.now();
      probe();
      best = Math.min(best, performance.now() - started);
    }
    return { choice, best };
  });
  return timed.reduce((one, other) => (other.best < one.best ? other : one)).choice;
}

function sha256Probe(sha256: HashingChoice["sha256"], data: Uint8Array): () => void {
  const hashing = openHashing({ sha256, md5: "openssl" });
  const blocks = probeBytes / probeBlockBytes;
  const digests = new Uint8Array(blocks * 32);
  const zero = new Uint8Array(blocks);
  return () => hashing.hashBlocks(data, probeBlockBytes, digests, zero);
}

function md5Probe(md5: HashingChoice["md5"], data: Uint8Array): () => void {
  const hashing = openHashing({ sha256: "openssl", md5 });
  const spans: Span[] = [];
  for (let offset = 0; offset < probeBytes; offset += probeBlockBytes) spans.push({ offset, length: probeBlockBytes });
  return () => void hashing.md5(data, spans);
}
