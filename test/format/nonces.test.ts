import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { frameKeysFor, frameNonce, frameTextBytes } from "../../packages/engine/src/encryption/frames.ts";
import { times } from "../kit/long.ts";

/** TEPHRA_TEST_NONCES=10000000 takes a minute or two. */
const frames = Number(process.env["TEPHRA_TEST_NONCES"] ?? times({ usual: 200_000, long: 1_000_000 }));
const framesPerObject = 10_000;

test(`${frames} frames of one backup have as many nonces`, { timeout: 600_000 }, () => {
  const secret = createHash("sha256").update("data key").digest();
  const objectKeys = (object: number) => frameKeysFor(secret, `volume_v_20261120172141_backup_b-${object}`);
  // All of the same text: whatever differs comes from the place alone.
  const digest = createHash("sha256").update(Buffer.alloc(frameTextBytes)).digest();
  const starts = new BigUint64Array(frames);
  let keys = objectKeys(0);
  for (let at = 0; at < frames; at++) {
    const index = at % framesPerObject;
    if (index === 0) keys = objectKeys(at / framesPerObject);
    starts[at] = frameNonce(keys, { index, last: index === framesPerObject - 1 }, digest).readBigUInt64LE();
  }
  starts.sort();
  let equal = 0;
  for (let index = 1; index < frames; index++) if (starts[index] === starts[index - 1]) equal++;
  // 64 of 96 bits are compared: by chance two of ten million agree once in 370,000 runs.
  expect(equal).toBe(0);
});
