import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  chunk,
  type NbdScript,
  optionReply,
  startNbdServer,
  u16,
  u32,
  u64,
} from "../../../../../test/kit/nbd-server.ts";
import { NbdClient } from "./nbd-client.ts";
import { NbdSource } from "./nbd-volume.ts";

const size = 8192;

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "nbd-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

describe("a server that does not follow the protocol ends the connection with a reason", () => {
  const connecting: Record<string, [NbdScript, string]> = {
    "another protocol": [{ greeting: Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n") }, "is not an NBD server"],
    "the old handshake": [
      { greeting: Buffer.concat([Buffer.from("NBDMAGIC"), u64(0x420281861253n), u64(size), Buffer.alloc(128)]) },
      "is not an NBD server",
    ],
    "half a greeting": [{ greeting: Buffer.from("NBDMAGIC"), go: [] }, "has closed the connection"],
    "a length of 2^63": [{ sizeBytes: 2n ** 63n }, "says that it has 9223372036854775808 bytes"],
    "no length": [{ go: [optionReply(7, 1)] }, "does not say how long the export is"],
    "an endless option reply": [
      { go: [Buffer.concat([u64(0x3e889045565a9n), u32(7), u32(3), u32(2 ** 31)])] },
      "announced a reply of 2147483648 bytes",
    ],
    "a reply to another option": [{ go: [optionReply(3, 1)] }, "sent something that answers no option"],
    "a wish for TLS": [{ go: [optionReply(7, 0x80000005)] }, "wants TLS, which is not supported"],
    "a missing export": [{ go: [optionReply(7, 0x80000006)] }, "has no such export"],
    "replies without end": [
      { go: Array.from({ length: 1100 }, () => optionReply(7, 3, Buffer.alloc(12, 7))) },
      "sent more than 1024 replies to one option",
    ],
    "a refusal with control characters": [
      { go: [optionReply(7, 0x80000003, Buffer.from("no\x1b[2J"))] },
      "refused: no?[2J",
    ],
  };
  it.each(Object.entries(connecting))("(%s)", async (name, [script, why]) => {
    await using server = await startNbdServer(folder, script);
    const opening = NbdClient.open({ path: server.path }, "disk", "the server");
    if (name === "half a greeting") setTimeout(() => void server[Symbol.asyncDispose](), 50);
    await expect(opening).rejects.toThrow(why);
  });

  const data = (offset: number, bytes: number): Buffer => Buffer.concat([u64(offset), Buffer.alloc(bytes, 7)]);
  const reading: Record<string, [NbdScript["reply"], string]> = {
    "half a reply": [
      ({ cookie }) => chunk(cookie, 1, data(4096, 100)),
      "answered with 100 bytes where 4096 were requested",
    ],
    "one half twice": [
      ({ cookie }) => Buffer.concat([chunk(cookie, 1, data(4096, 2048), 0), chunk(cookie, 1, data(4096, 2048))]),
      "sent the same data twice",
    ],
    "a reply cut off": [() => null, "has closed the connection"],
    "more than was requested": [({ cookie }) => chunk(cookie, 1, data(0, 5000)), "sent data that nobody requested"],
    "bytes before": [({ cookie }) => chunk(cookie, 1, data(0, 4096)), "sent data that nobody requested"],
    "a hole beyond": [
      ({ cookie }) => chunk(cookie, 2, Buffer.concat([u64(4096), u32(2 ** 31)])),
      "sent data that nobody requested",
    ],
    "a reply to nothing": [() => chunk(u64(999), 1, data(4096, 4096)), "answered a request that nobody made"],
    rubbish: [() => Buffer.alloc(64, 1), "sent something that is no reply"],
    "an endless error": [
      ({ cookie }) => Buffer.concat([u32(0x668e33ef), u16(1), u16(0x8001), cookie, u32(2 ** 31)]),
      "sent an error of the wrong form",
    ],
    "pieces without end": [
      ({ cookie }) => Buffer.concat(Array.from({ length: 2100 }, () => chunk(cookie, 0, Buffer.alloc(0), 0))),
      "sent more than 2048 pieces",
    ],
    "a reply without structure": [
      ({ cookie }) => Buffer.concat([u32(0x67446698), u32(0), cookie]),
      "answered a read without structure",
    ],
    "an input error": [
      ({ cookie }) => chunk(cookie, 0x8001, Buffer.concat([u32(5), u16(3), Buffer.from("bad")])),
      "refused a request: bad (EIO)",
    ],
  };
  it.each(Object.entries(reading))("(%s)", async (_, [reply, why]) => {
    await using server = await startNbdServer(folder, reply === undefined ? {} : { reply });
    await using client = await NbdClient.open({ path: server.path }, "disk", "the server");
    await expect(client.read(Buffer.alloc(4096), 4096)).rejects.toThrow(why);
  });

  const status: Record<string, [Buffer, string]> = {
    "an empty extent": [Buffer.concat([u32(5), u32(0), u32(0)]), "sent the status of an empty extent"],
    "another context": [Buffer.concat([u32(6), u32(size), u32(0)]), "a context that nobody asked for"],
    "a broken list": [Buffer.concat([u32(5), u32(size)]), "sent a status of the wrong form"],
  };
  it.each(Object.entries(status))("(a status with %s)", async (_, [payload, why]) => {
    await using server = await startNbdServer(folder, { reply: ({ cookie }) => chunk(cookie, 5, payload) });
    await using source = new NbdSource(await NbdClient.open({ path: server.path }, "disk", "the server"));
    await expect(source.dataExtents({ offset: 0, length: size }).next()).rejects.toThrow(why);
  });
});

describe("a server that sends a byte now and then is given up", () => {
  const patient = { silence: 60_000, handshake: 60_000, reply: 60_000 };

  it("while it is connected to", async () => {
    await using server = await startNbdServer(folder, { greeting: Buffer.alloc(0), trickles: "greeting" });
    const limitsMs = { ...patient, handshake: 1_000 };
    const opening = NbdClient.open({ path: server.path }, "disk", "the server", { limitsMs });
    await expect(opening).rejects.toThrow("the server has completed no reply for 1 s");
  });

  it("while it is read", async () => {
    const whole = (cookie: Buffer): Buffer => chunk(cookie, 1, Buffer.concat([u64(0), Buffer.alloc(4096)]));
    await using server = await startNbdServer(folder, {
      reply: ({ cookie }) => whole(cookie).subarray(0, 100),
      trickles: "reply",
    });
    const limitsMs = { ...patient, reply: 1_000 };
    await using client = await NbdClient.open({ path: server.path }, "disk", "the server", { limitsMs });
    await expect(client.read(Buffer.alloc(4096), 0)).rejects.toThrow("the server has completed no reply for 1 s");
  });
});

it("puts chunks and holes where they belong, in whatever order they come", async () => {
  await using server = await startNbdServer(folder, {
    reply: ({ cookie }) =>
      Buffer.concat([
        chunk(cookie, 1, Buffer.concat([u64(2048), Buffer.alloc(2048, 2)]), 0),
        chunk(cookie, 2, Buffer.concat([u64(1024), u32(1024)]), 0),
        chunk(cookie, 1, Buffer.concat([u64(0), Buffer.alloc(1024, 1)]), 0),
        chunk(cookie, 0, Buffer.alloc(0)),
      ]),
  });
  await using client = await NbdClient.open({ path: server.path }, "disk", "the server");
  const into = Buffer.alloc(4096, 9);
  await client.read(into, 0);
  expect([into[0], into[1023], into[1024], into[2047], into[2048], into[4095]]).toEqual([1, 1, 0, 0, 2, 2]);
});

it("reports as data whatever is not known to be zero, joined, and clipped to what was asked", async () => {
  const extents = [u32(1024), u32(0), u32(1024), u32(1), u32(1024), u32(3), u32(2 ** 31), u32(0)];
  await using server = await startNbdServer(folder, {
    reply: ({ cookie }) => chunk(cookie, 5, Buffer.concat([u32(5), ...extents])),
  });
  await using source = new NbdSource(await NbdClient.open({ path: server.path }, "disk", "the server"));
  const found = await Array.fromAsync(source.dataExtents({ offset: 512, length: 7000 }));
  expect(found).toEqual([
    { offset: 512, length: 2048 },
    { offset: 3584, length: 3928 },
  ]);
});
