import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import {
  type NbdRequest,
  type NbdScript,
  optionReply,
  simpleReply,
  startNbdServer,
  u16,
  u32,
  u64,
} from "../../../../test/kit/nbd-server.ts";
import { opensslChoice } from "../hashing/hashing.ts";
import { NbdClient } from "../volume/nbd/nbd-client.ts";
import type { NbdExport } from "../volume/nbd/nbd-protocol.ts";
import { CpuPool } from "./cpu-pool.ts";
import type { CopyWindowRequest, CpuResult } from "./cpu-tasks.ts";
import { DirectAccess, nbdError } from "./direct-access.ts";

const MiB = 1024 * 1024;
const requestBytes = 256 * 1024;
const several = { flags: 5 | 256 };
const never = new AbortController().signal;

let pool: CpuPool;
let folder: string;
beforeAll(() => {
  pool = new CpuPool(2, () => opensslChoice);
});
afterAll(() => pool[Symbol.asyncDispose]());
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbd-lane-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const windowOf = (
  offset: number,
  length: number,
): Omit<CopyWindowRequest, "source"> & { offset: number; length: number } => ({
  kind: "copyWindow",
  window: null,
  offset,
  length,
  blockBytes: 4096,
  parentHashes: null,
  compression: "none",
  level: 0,
  zlibEncoder: "zlib",
  compressZeros: false,
  digestStored: false,
});

/** Has a thread read a window of the server's export. */
async function readBy(access: DirectAccess, offset: number, length: number): Promise<CpuResult<CopyWindowRequest>> {
  return access.use(async (place) => {
    if (place === null) throw new Error("there is no connection");
    const source = { place, offset, length, data: Float64Array.of(0, length) };
    return pool.run<CopyWindowRequest>({ ...windowOf(offset, length), source }, [], never);
  });
}

async function exportOf(path: string): Promise<NbdExport> {
  await using client = await NbdClient.open({ path }, "disk", "the server");
  return client.export as NbdExport;
}

describe("a server that does not follow the protocol is not read by threads any more", () => {
  const lies: Record<string, [NbdScript["reply"], string]> = {
    "a reply cut off": [
      ({ cookie, offset }) => (offset === 0n ? simpleReply(cookie, Buffer.alloc(100)) : null),
      "has closed the connection",
    ],
    "nothing at all": [() => null, "has closed the connection"],
    "a reply to nothing": [() => simpleReply(u64(999), Buffer.alloc(4096)), "answered a request that nobody made"],
    "more than was requested": [
      ({ cookie }) => simpleReply(cookie, Buffer.alloc(requestBytes + 64)),
      "sent something that is no reply",
    ],
    "a reply twice": [
      ({ cookie }) => {
        const reply = simpleReply(cookie, Buffer.alloc(requestBytes));
        return Buffer.concat([reply, reply]);
      },
      "answered a request that nobody made",
    ],
    rubbish: [() => Buffer.alloc(64, 1), "sent something that is no reply"],
    "a reply with structure": [
      ({ cookie }) => Buffer.concat([u32(0x668e33ef), u16(1), u16(1), cookie, u32(4104), u64(0), Buffer.alloc(4096)]),
      "sent something that is no reply",
    ],
    "an input error": [({ cookie }) => simpleReply(cookie, Buffer.alloc(0), 5), "refused a request: EIO"],
    "an unknown error": [({ cookie }) => simpleReply(cookie, Buffer.alloc(0), 4711), "refused a request: 4711"],
  };
  it.each(Object.entries(lies))("(%s)", async (name, [reply, why]) => {
    await using server = await startNbdServer(folder, {
      ...several,
      sizeBytes: BigInt(2 * MiB),
      reply: (request) => reply?.(request) ?? null,
    });
    const to = await exportOf(server.path);
    using access = await DirectAccess.open(pool, { nbdExport: to }, 1);
    const result = await readBy(access, 0, 2 * MiB);
    if (!("unread" in result) || result.unread.failure === undefined) throw new Error("it was read");
    expect(nbdError(to, result.unread.failure)).toMatchObject({
      message: expect.stringContaining(why),
      code: "volume_storage",
      retryable: name !== "an unknown error",
    });
    expect(access.places).toBe(0);
  });

  it("(silence)", async () => {
    await using server = await startNbdServer(folder, { ...several, reply: () => Buffer.alloc(0) });
    const to = await exportOf(server.path);
    const { lane } = await pool.run({ kind: "openLane", to, limitsMs: { handshake: 5_000, silence: 200 } }, [], never);
    const place = { nbd: lane as number, writesZeroes: false };
    const source = { place, offset: 0, length: 4096, data: Float64Array.of(0, 4096) };
    const result = await pool.run<CopyWindowRequest>({ ...windowOf(0, 4096), source }, [], never);
    expect(result).toMatchObject({ unread: { failure: { words: "did not answer for 60 s", errno: null } } });
  });
});

describe("threads open no connection", () => {
  const rest = { sizeBytes: 8192n };
  const reasons: Record<string, NbdScript> = {
    "to another protocol": { further: { greeting: Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n") } },
    "to an export of another length": { further: { sizeBytes: 4096n } },
    "that the server refuses": { further: { go: [optionReply(7, 0x80000002)] } },
    "that the server promises nothing about": { further: { flags: 5 } },
    "to an export without a length": { further: { go: [optionReply(7, 1)] } },
    "to a server with an endless option reply": {
      further: { go: [Buffer.concat([u64(0x3e889045565a9n), u32(7), u32(3), u32(2 ** 31)])] },
    },
  };
  it.each(Object.entries(reasons))("%s", async (_, script) => {
    await using server = await startNbdServer(folder, { ...several, ...rest, ...script });
    using access = await DirectAccess.open(pool, { nbdExport: await exportOf(server.path) }, 2);
    expect(access.places).toBe(0);
    expect(server.connections()).toBe(3);
  });

  it("where another one is not accepted in time", async () => {
    await using server = await startNbdServer(folder, { ...several, further: { greeting: Buffer.alloc(0) } });
    const to = await exportOf(server.path);
    const limitsMs = { handshake: 200, silence: 60_000 };
    expect(await pool.run({ kind: "openLane", to, limitsMs }, [], never)).toEqual({ lane: null });
  });

  it("where the server promises nothing about several of them", async () => {
    await using server = await startNbdServer(folder, {});
    await using client = await NbdClient.open({ path: server.path }, "disk", "the server");
    expect(client.export).toBeUndefined();
  });
});

it("puts replies where they belong, in whatever order they come", async () => {
  const disk = randomBytes(2 * MiB);
  const waiting: NbdRequest[] = [];
  await using server = await startNbdServer(folder, {
    ...several,
    sizeBytes: BigInt(disk.length),
    reply: (request) => {
      if (request.command !== 0) return Buffer.alloc(0);
      waiting.push(request);
      if (waiting.length < 4) return Buffer.alloc(0);
      const replies = waiting.splice(0).reverse();
      return Buffer.concat(
        replies.map(({ cookie, offset, length }) =>
          simpleReply(cookie, disk.subarray(Number(offset), Number(offset) + length)),
        ),
      );
    },
  });
  using access = await DirectAccess.open(pool, { nbdExport: await exportOf(server.path) }, 1);
  const result = await readBy(access, MiB, MiB);
  if (!("hashes" in result)) throw new Error("it was not read");
  expect(Buffer.from(result.raw as ArrayBuffer).equals(disk.subarray(MiB))).toBe(true);
  const first = createHash("sha256")
    .update(disk.subarray(MiB, MiB + 4096))
    .digest();
  expect(Buffer.from(result.hashes.subarray(0, 32)).equals(first)).toBe(true);
  expect(access.places).toBe(1);
});
