import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { freeContext, layoutFor, MemoryTarget } from "../../../../test/format/backup-fixture.ts";
import {
  diskReply,
  type NbdRequest,
  type NbdScript,
  simpleReply,
  startNbdServer,
} from "../../../../test/kit/nbd-server.ts";
import { type Engine, openEngine } from "../engine.ts";
import type { BackupLayout } from "../format/layout.ts";
import { loadNative } from "../hashing/native.ts";
import { openRepository } from "../open-repository.ts";
import type { Repository } from "../repository/repository.ts";
import { NbdClient } from "../volume/nbd/nbd-client.ts";
import { NbdSource, NbdTarget } from "../volume/nbd/nbd-volume.ts";

const MiB = 1024 * 1024;
const commands = { read: 0, write: 1, flush: 3, writeZeroes: 6 };
/** A flush, zeros and several connections. */
const flags = 5 | 64 | 256;
const sizeBytes = 6 * MiB + 5_000;

let home: string;
let engine: Engine;
let repository: Repository;
let disk: Buffer;
/** What the server was asked for. */
let asked: NbdRequest[];
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-nbd-lanes-"));
  repository = await openRepository(`posix:${join(home, "repository")}`);
  await repository.initialize();
  engine = openEngine({ threads: 2, hashing: loadNative() === null ? "openssl" : "native" });
  disk = randomBytes(sizeBytes);
  disk.fill(0, 2 * MiB, 3 * MiB + 600_000);
  asked = [];
});
afterEach(async () => {
  await engine[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

const serve = (script: Partial<NbdScript> = {}) =>
  startNbdServer(home, {
    sizeBytes: BigInt(sizeBytes),
    flags,
    reply: (request) => {
      asked.push(request);
      return diskReply(disk, request);
    },
    ...script,
  });
const by = (command: number, structured: boolean): number =>
  asked.filter((request) => request.command === command && request.structured === structured).length;
const layoutOf = (overrides: Partial<BackupLayout> = {}): BackupLayout =>
  layoutFor(repository, sizeBytes, { compression: "none", objectBytes: MiB, blockBytes: 32768, ...overrides });
const referenceOf = ({ backupId, container, prefix }: BackupLayout) => ({ backupId, repository, container, prefix });

async function backUp(path: string, layout: BackupLayout, parent: BackupLayout | null = null): Promise<void> {
  await using source = new NbdSource(await NbdClient.open({ path }, "disk", "the server"));
  const input = { source, repository, layout, parent: parent === null ? null : referenceOf(parent) };
  await engine.backupWhole(input, freeContext());
}

async function restored(chain: BackupLayout[]): Promise<Buffer> {
  await using target = new MemoryTarget(sizeBytes);
  await engine.restoreWhole({ chain: chain.map(referenceOf), target }, freeContext());
  return target.bytes;
}

describe("a backup of an export", () => {
  it.each(["none", "zlib"] as const)("is read by threads, as is what has changed since (%s)", async (compression) => {
    await using server = await serve();
    const full = layoutOf({ compression });
    await backUp(server.path, full);
    expect([by(commands.read, true), by(commands.read, false) > 0]).toEqual([0, true]);
    expect((await restored([full])).equals(disk)).toBe(true);
    randomBytes(70_000).copy(disk, 4 * MiB - 30_000);
    const next = layoutOf({ compression, volumeId: full.volumeId, parentId: full.backupId });
    await backUp(server.path, next, full);
    expect(by(commands.read, true)).toBe(0);
    expect((await restored([next, full])).equals(disk)).toBe(true);
  });

  it.each(["none", "zlib"] as const)("is read by request where it takes one connection (%s)", async (compression) => {
    await using server = await serve({ flags: 5 });
    const layout = layoutOf({ compression });
    await backUp(server.path, layout);
    expect([by(commands.read, true) > 0, by(commands.read, false)]).toEqual([true, 0]);
    expect((await restored([layout])).equals(disk)).toBe(true);
  });

  it("ends with what its server did to a thread", async () => {
    let refused = 0;
    const reply = (request: NbdRequest): Buffer | null => {
      if (request.structured || request.offset < BigInt(3 * MiB)) return diskReply(disk, request);
      refused++;
      return simpleReply(request.cookie, Buffer.alloc(0), 5);
    };
    await using server = await serve({ reply });
    await expect(backUp(server.path, layoutOf())).rejects.toMatchObject({
      code: "volume_storage",
      retryable: true,
      message: "the server refused a request: EIO.",
    });
    expect(refused).toBeGreaterThan(0);
  });
});

describe("a restore onto an export", () => {
  let layout: BackupLayout;
  let bytes: Buffer;
  beforeEach(async () => {
    layout = layoutOf();
    await using server = await serve();
    await backUp(server.path, layout);
    bytes = Buffer.from(disk);
    disk.fill(0xee);
    asked = [];
  });

  const restore = async (path: string, ctx = freeContext()): Promise<void> => {
    await using target = new NbdTarget(await NbdClient.open({ path }, "disk", "the server"), { isNew: false });
    await engine.restoreWhole({ chain: [referenceOf(layout)], target }, ctx);
  };

  it.runIf(loadNative() !== null)("is written by threads and flushed at the end; zeros are not sent", async () => {
    await using server = await serve();
    await restore(server.path);
    expect(disk.equals(bytes)).toBe(true);
    expect(by(commands.write, false)).toBeGreaterThan(0);
    expect(by(commands.writeZeroes, false)).toBeGreaterThan(0);
    expect(asked.filter(({ data }) => data.length > 0 && data.every((byte) => byte === 0))).toEqual([]);
    expect(asked.every(({ length }) => length <= MiB)).toBe(true);
    expect(asked.findLastIndex(({ command }) => command === commands.flush)).toBeGreaterThan(
      asked.findLastIndex(({ command }) => command === commands.write || command === commands.writeZeroes),
    );
  });

  it("is written by request where it takes one connection", async () => {
    await using server = await serve({ flags: 5 });
    await restore(server.path);
    expect(disk.equals(bytes)).toBe(true);
    expect([by(commands.write, true) > 0, by(commands.write, false)]).toEqual([true, 0]);
  });

  /** To threads' writes into the last two MiB something else. */
  const serveBadly = (answer: (request: NbdRequest) => Buffer | null) =>
    serve({
      reply: (request) => {
        asked.push(request);
        const isBad = !request.structured && request.offset > BigInt(4 * MiB);
        return isBad ? answer(request) : diskReply(disk, request);
      },
    });

  it("is completed by request where its server refuses a thread", async () => {
    await using server = await serveBadly(({ cookie }) => simpleReply(cookie, Buffer.alloc(0), 5));
    await restore(server.path);
    expect(disk.equals(bytes)).toBe(true);
    expect(by(commands.write, true)).toBeGreaterThan(0);
  });

  it.runIf(loadNative() !== null)(
    "ends when a connection is lost with a write on it, which may still happen",
    async () => {
      await using server = await serveBadly(() => null);
      await expect(restore(server.path)).rejects.toMatchObject({
        code: "volume_storage",
        retryable: true,
        message: expect.stringContaining("the server has closed the connection"),
      });
    },
  );

  it("is not written by threads after the end of the lease", async () => {
    await using server = await serve();
    const writableUntil = new BigInt64Array(new SharedArrayBuffer(8));
    await restore(server.path, freeContext({ writableUntil }));
    expect([by(commands.write, false), by(commands.writeZeroes, false)]).toEqual([0, 0]);
  });
});
