import { randomInt } from "node:crypto";
import { readdirSync } from "node:fs";
import {
  cancelImageTransfer,
  extendImageTransfer,
  finalizeImageTransfer,
  getImageTransfer,
  ImageTransferError,
  type Principal,
  pauseImageTransfer,
  requestSnapshotDelete,
  resumeImageTransfer,
} from "@tephra/control";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { childrenOf } from "../../kit/children-of.ts";
import { askImage } from "../../kit/image-client.ts";
import { type ImageWorld, nothingIsLeft, openImageWorld, owner } from "../../kit/image-world.ts";
import { randomFrom } from "../../kit/random.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const stack = new AsyncDisposableStack();
let world: ImageWorld;
beforeAll(async () => {
  const env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  Object.assign(process.env, env);
  world = await openImageWorld(stack, { env });
}, 600_000);
afterAll(() => stack.disposeAsync());

const finalize = (id: string) => finalizeImageTransfer(world.database, owner, id);
const cancel = (id: string) => cancelImageTransfer(world.database, owner, id);

/** What is said of a request by the headers that count. */
const shape = ({ status, reason, headers, text }: Awaited<ReturnType<typeof askImage>>) => ({
  said: `${status} ${reason}`,
  ...Object.fromEntries(
    ["content-length", "allow", "content-type", "content-disposition", "content-range"].flatMap((name) =>
      headers[name] === undefined ? [] : [[name, headers[name]]],
    ),
  ),
  closes: headers["connection"] === "close",
  text,
});
const text = (said: string, body: string, more: { closes: boolean; [header: string]: unknown }) => ({
  said,
  "content-length": String(body.length + 1),
  "content-type": "text/plain; charset=UTF-8",
  text: `${body}\n`,
  ...more,
});
const json = (body: string, more: object = {}) => ({
  said: "200 OK",
  "content-length": String(body.length + 1),
  "content-type": "application/json",
  closes: false,
  text: `${body}\n`,
  ...more,
});
const nothing = { said: "200 OK", "content-length": "0", closes: false, text: "" };

describe("on the wire", () => {
  it.each(["files", "images"] as const)("an upload to %s is answered as by oVirt's image server", async (backend) => {
    const volumeId = await world.addVolume(backend, MiB);
    const { id, client } = await world.open({ volumeId, direction: "upload" });
    const ask = async (...asked: Parameters<typeof client.ask>) => shape(await client.ask(...asked));
    const path = new URL(client.url).pathname;
    expect(path).toMatch(/^\/images\/[0-9a-f]{64}$/);
    const features = '{"features": ["extents", "flush", "zero"], "max_readers": 8, "max_writers": 8}';
    expect(await ask("OPTIONS")).toEqual(json(features, { allow: "OPTIONS,GET,PUT,PATCH" }));
    const body = randomBytesOf("piece", 64 * KiB);
    const headers = { "content-range": "bytes 0-65535/*", "content-type": "application/octet-stream" };
    expect(await ask("PUT", "?flush=n", { headers, body })).toEqual(nothing);
    const zero = '{"op": "zero", "offset": 65536, "size": 65536, "flush": false}';
    expect(await ask("PATCH", "", { body: zero })).toEqual(nothing);
    expect(await ask("PATCH", "", { body: '{"op": "flush"}' })).toEqual(nothing);
    expect(await ask("GET", "", { headers: { range: "bytes=0-9" } })).toEqual({
      said: "206 Partial Content",
      "content-length": "10",
      "content-type": "application/octet-stream",
      "content-disposition": "attachment",
      "content-range": "bytes 0-9/1048576",
      closes: false,
      text: body.toString("utf8", 0, 10),
    });
    const extents =
      '[{"start": 0, "length": 65536, "zero": false, "hole": false}, {"start": 65536, "length": 983040, "zero": true, "hole": false}]';
    expect(await ask("GET", "/extents")).toEqual(json(extents));
    expect(await ask("GET", "/extents?context=zero")).toEqual(json(extents));
    expect(await ask("GET", "/extents?context=dirty")).toEqual(
      text("404 Not Found", "Ticket does not support dirty extents", { closes: false }),
    );
    expect((await client.ask("GET", "/extents?context=wrong")).status).toBe(400);
    expect(await ask("GET", "", { headers: { range: "bytes=1048570-1048579" } })).toEqual(
      text("416 Requested Range Not Satisfiable", "Requested range out of allowed range", {
        closes: false,
        "content-range": "bytes */1048576",
      }),
    );
    const one = { headers: { "content-range": "bytes 0-0/*" }, body: "x" };
    expect(await ask("PUT", "?flush=maybe", one)).toEqual(
      text("400 Bad Request", "Unsupported value 'maybe' for 'flush', expecting one of ['n', 'y']", { closes: true }),
    );
    for (const method of ["POST", "DELETE"]) {
      expect(await ask(method, "", { body: "x" })).toEqual(
        text("405 Method Not Allowed", `Method '${method}' not defined for '${path}'`, { closes: true }),
      );
    }
    await cancel(id);
    await world.reach(id, "finished_cleanup");
  });

  it("a ticket to read gives no right to write, and another none at all", async () => {
    const volumeId = await world.addVolume("files", MiB);
    const { id, client } = await world.open({ volumeId });
    const ask = async (...asked: Parameters<typeof client.ask>) => shape(await client.ask(...asked));
    const features = '{"features": ["extents"], "max_readers": 8, "max_writers": 8}';
    expect(await ask("OPTIONS")).toEqual(json(features, { allow: "OPTIONS,GET" }));
    const forbidden = text(
      "403 Forbidden",
      `You are not allowed to access this resource: Transfer=${id} forbids write`,
      {
        closes: true,
      },
    );
    expect(await ask("PUT", "", { headers: { "content-range": "bytes 0-9/*" }, body: "0123456789" })).toEqual(
      forbidden,
    );
    expect(await ask("PATCH", "", { body: '{"op": "flush"}' })).toEqual(forbidden);
    const root = new URL(client.url).origin;
    const other = client.url.endsWith("0") ? "1" : "0";
    for (const ticket of ["0".repeat(64), id, "x", client.url.slice(-64, -1) + other]) {
      const said = shape(await askImage("GET", `${root}/images/${ticket}`));
      expect(said).toEqual(
        text("403 Forbidden", `You are not allowed to access this resource: No such ticket ${ticket}`, {
          closes: true,
        }),
      );
    }
    for (const path of ["/", "/images", `/x${new URL(client.url).pathname}`, `${new URL(client.url).pathname}/x`]) {
      expect((await askImage("GET", root + path)).status).toBe(404);
    }
    const [stored] = await world.instance.sql(
      `SELECT row_to_json(t)::text AS row FROM image_transfers t WHERE id = $1`,
      [id],
    );
    expect(stored.row).not.toContain(client.url.slice(-64));
    await finalize(id);
    await world.reach(id, "finished_success");
    expect((await askImage("OPTIONS", client.url)).status).toBe(403);
  });
});

it.each(["files", "images"] as const)(
  "what is uploaded to %s in any order is what is downloaded",
  { timeout: 180_000 },
  async (backend) => {
    const seed = randomInt(2 ** 31);
    const random = randomFrom(seed);
    process.stderr.write(`image transfers: seed ${seed}
`);
    const size = 12 * MiB + 512;
    const expected = Buffer.alloc(size);
    const volumeId = await world.addVolume(backend, size);
    const upload = await world.open({ volumeId, direction: "upload" });
    // Lanes of their own: requests at the same time never write the same bytes.
    const lanes = 8;
    const lane = Math.floor(size / lanes / 512) * 512;
    const write = async (index: number): Promise<void> => {
      const from = index * lane;
      const end = index === lanes - 1 ? size : from + lane;
      for (let step = 0; step < 12; step += 1) {
        const offset = from + random(end - from);
        const length = 1 + random(Math.min(end - offset, 700 * KiB));
        if (random(4) === 0) {
          expect((await upload.client.patch({ op: "zero", offset, size: length })).status).toBe(200);
          expected.fill(0, offset, offset + length);
        } else {
          const data = randomBytesOf(`${seed}-${index}-${step}`, length);
          if (random(4) === 0) {
            const headers = { "content-range": `bytes ${offset}-${offset + length - 1}/*` };
            const breakAfter = Math.ceil(length / 2);
            await upload.client.ask("PUT", "?flush=n", { headers, body: data, breakAfter }).catch(() => {});
          }
          expect((await upload.client.put(data, offset)).status).toBe(200);
          data.copy(expected, offset);
        }
      }
    };
    await Promise.all(Array.from({ length: lanes }, (_, index) => write(index)));
    expect((await upload.client.patch({ op: "flush" })).status).toBe(200);
    expect((await upload.client.get(0, size)).equals(expected)).toBe(true);
    expect((await world.bytesOf(backend, volumeId)).every((byte) => byte === 0)).toBe(true);
    await finalize(upload.id);
    await world.reach(upload.id, "finished_success");
    expect(await world.statusOf(volumeId)).toBe("available");
    expect((await world.bytesOf(backend, volumeId)).equals(expected)).toBe(true);

    const download = await world.open({ volumeId });
    const read = Buffer.alloc(size);
    const extents = JSON.parse((await download.client.ask("GET", "/extents")).text);
    let at = 0;
    for (const { start, length, zero } of extents) {
      expect(start).toBe(at);
      at += length;
      if (!zero) (await download.client.get(start, length)).copy(read, start);
    }
    expect(at).toBe(size);
    expect(read.equals(expected)).toBe(true);
    const parts = Array.from({ length: 40 }, () => {
      const offset = random(size);
      return { offset, length: 1 + random(size - offset) };
    });
    await Promise.all(
      parts.map(async ({ offset, length }) => {
        const part = await download.client.get(offset, length);
        expect(part.equals(expected.subarray(offset, offset + length))).toBe(true);
      }),
    );
    expect((await download.client.ask("GET")).body.equals(expected)).toBe(true);
    await finalize(download.id);
    await world.reach(download.id, "finished_success");
    await nothingIsLeft(world);
  },
);

const refusedWith = async (work: Promise<unknown>): Promise<string> => {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (error instanceof ImageTransferError) return error.problem;
  throw error ?? new Error("it was not refused");
};

it("a volume is in one transfer at a time, and locked by it", async () => {
  const volumeId = await world.addVolume("files", MiB);
  const attempts = await Promise.allSettled(
    Array.from({ length: 6 }, () => world.begin({ volumeId, direction: "upload" })),
  );
  const [begun, ...others] = attempts.toSorted((a, b) =>
    a.status === b.status ? 0 : a.status === "fulfilled" ? -1 : 1,
  );
  expect(others.map((one) => (one as PromiseRejectedResult).reason.problem)).toEqual(
    Array.from({ length: 5 }, () => "disk-transferring"),
  );
  const { id } = (begun as PromiseFulfilledResult<{ id: string }>).value;
  await world.reach(id, "transferring");
  expect(await world.statusOf(volumeId)).toBe("downloading");
  const { url } = await world.reach(id, "transferring");
  await pauseImageTransfer(world.database, owner, id);
  expect((await askImage("OPTIONS", url ?? "")).status).toBe(403);
  expect((await getImageTransfer(world.database, world.config, owner, id)).url).toBe(null);
  expect(await refusedWith(pauseImageTransfer(world.database, owner, id))).toBe("not-pausable");
  await resumeImageTransfer(world.database, world.config, owner, id);
  const again = await world.reach(id, "transferring");
  expect(again.url).not.toBe(url);
  expect((await askImage("OPTIONS", again.url ?? "")).status).toBe(200);
  expect((await askImage("OPTIONS", url ?? "")).status).toBe(403);
  expect(await refusedWith(resumeImageTransfer(world.database, world.config, owner, id))).toBe("not-paused");
  await extendImageTransfer(world.database, owner, id);
  await cancel(id);
  await world.reach(id, "finished_cleanup");
  await cancel(id);
  expect(await refusedWith(finalize(id))).toBe("not-finalizable");
  expect(await refusedWith(extendImageTransfer(world.database, owner, id))).toBe("ended");
  await world.instance.waitFor(async () => (await world.statusOf(volumeId)) === null, {
    what: "the new disk is removed",
  });
  const foreign: Principal = { ...owner, projectId: "p2" };
  await expect(getImageTransfer(world.database, world.config, foreign, id)).rejects.toThrow("could not be found");
  await expect(cancelImageTransfer(world.database, foreign, id)).rejects.toThrow("could not be found");
});

it("a download cannot be paused; disks that are in error, busy, of others or of running machines are refused", async () => {
  const volumeId = await world.addVolume("files", MiB);
  const { id } = await world.open({ volumeId });
  expect(await world.statusOf(volumeId)).toBe("uploading");
  expect(await refusedWith(pauseImageTransfer(world.database, owner, id))).toBe("download-cannot-pause");
  await cancel(id);
  await world.reach(id, "finished_cleanup");
  expect(await world.statusOf(volumeId)).toBe("available");
  const refused = async (data: object) => {
    await world.database.volume.update({ where: { id: volumeId }, data });
    return refusedWith(world.begin({ volumeId }));
  };
  expect(await refused({ status: "error" })).toBe("disk-illegal");
  expect(await refused({ status: "backing-up" })).toBe("disk-locked");
  expect(await refused({ status: "available", projectId: "p2" })).toBe("disk-unknown");
  await world.database.volume.update({ where: { id: volumeId }, data: { projectId: "p1", status: "in-use" } });
  const machine = { id: volumeId, projectId: "p1", userId: "u", name: "vm1", driver: "record" };
  await world.database.instance.create({ data: { ...machine, powerState: "ACTIVE" } });
  await world.database.attachment.create({ data: { id: volumeId, projectId: "p1", volumeId, serverId: volumeId } });
  expect(await refusedWith(world.begin({ volumeId }))).toBe("disk-plugged");
  await world.database.instance.updateMany({ where: { id: volumeId }, data: { powerState: "SHUTOFF" } });
  const ofMachine = await world.open({ volumeId, direction: "upload" });
  await cancel(ofMachine.id);
  await world.reach(ofMachine.id, "finished_cleanup");
  expect(await world.statusOf(volumeId)).toBe("error");
  expect(await refusedWith(world.begin({ volumeId, format: "cow" }))).toBe("format-not-applicable");
});

it.each(["files", "images"] as const)(
  "a snapshot in %s is read while a machine writes to its disk, and is locked by that alone",
  { timeout: 180_000 },
  async (backend) => {
    const volumeId = await world.addVolume(backend, MiB);
    const write = async (data: Buffer) => {
      const { id, client } = await world.open({ volumeId, direction: "upload" });
      expect((await client.put(data, 0)).status).toBe(200);
      await finalize(id);
      await world.reach(id, "finished_success");
    };
    const before = randomBytesOf(`before ${backend}`, MiB);
    await write(before);
    const snapshotId = await world.addSnapshot(backend, volumeId);
    await write(randomBytesOf("after", MiB));
    const machine = { projectId: "p1", userId: "u", name: "runs", driver: "record", powerState: "ACTIVE" };
    await world.database.instance.create({ data: { id: volumeId, ...machine } });
    await world.database.attachment.create({ data: { id: volumeId, projectId: "p1", volumeId, serverId: volumeId } });
    await world.database.volume.update({ where: { id: volumeId }, data: { status: "in-use" } });
    expect(await refusedWith(world.begin({ volumeId }))).toBe("disk-plugged");

    const { id, client } = await world.open({ snapshotId });
    const snapshotStatus = async () =>
      (await world.database.snapshot.findUnique({ where: { id: snapshotId } }))?.status ?? null;
    expect([await world.statusOf(volumeId), await snapshotStatus()]).toEqual(["in-use", "backing-up"]);
    expect((await client.get(0, MiB)).equals(before)).toBe(true);
    expect((await client.ask("PUT", "", { body: "x" })).status).toBe(403);
    expect(await refusedWith(world.begin({ snapshotId }))).toBe("disk-transferring");
    await expect(requestSnapshotDelete(world.database, owner, snapshotId)).rejects.toThrow("status must be available");
    await finalize(id);
    await world.reach(id, "finished_success");
    expect([await world.statusOf(volumeId), await snapshotStatus()]).toEqual(["in-use", "available"]);

    expect(await refusedWith(world.begin({ snapshotId, direction: "upload" }))).toBe("snapshot-read-only");
    expect(await refusedWith(world.begin({ snapshotId: volumeId }))).toBe("disk-unknown");
    await world.database.snapshot.update({ where: { id: snapshotId }, data: { projectId: "p2" } });
    expect(await refusedWith(world.begin({ snapshotId }))).toBe("disk-unknown");
    await world.database.snapshot.update({ where: { id: snapshotId }, data: { projectId: "p1" } });

    if (backend === "images") {
      const image = await world.open({ snapshotId, format: null });
      const { body } = await image.client.ask("GET");
      expect(body.toString("latin1", 0, 4)).toBe("QFI\xfb");
      expect(body.includes(before)).toBe(true);
      await cancel(image.id);
      await world.reach(image.id, "finished_cleanup");
    } else {
      expect(await refusedWith(world.begin({ snapshotId, format: "cow" }))).toBe("format-not-applicable");
    }
    // An admin may take it away.
    const taken = await world.open({ snapshotId });
    await world.database.snapshot.update({ where: { id: snapshotId }, data: { status: "available" } });
    await world.reach(taken.id, "finished_failure");
    expect(await snapshotStatus()).toBe("available");
    await nothingIsLeft(world);
  },
);

it("a silent client's upload is paused, its download cancelled, and a policy is kept to", {
  timeout: 120_000,
}, async () => {
  const silent = async (direction: "upload" | "download", timeoutPolicy: "legacy" | "pause" | "cancel") => {
    const volumeId = await world.addVolume("files", MiB);
    return (await world.begin({ volumeId, direction, timeoutPolicy, inactivityTimeout: 1 })).id;
  };
  const forever = await world.open({ volumeId: await world.addVolume("files", MiB), inactivityTimeout: 0 });
  const [paused, gone, alsoPaused, cancelled] = await Promise.all([
    silent("upload", "legacy"),
    silent("download", "legacy"),
    silent("upload", "pause"),
    silent("upload", "cancel"),
  ]);
  await Promise.all([
    world.reach(paused, "paused_system"),
    world.reach(gone, "finished_cleanup"),
    world.reach(alsoPaused, "paused_system"),
    world.reach(cancelled, "finished_cleanup"),
  ]);
  expect((await forever.client.ask("OPTIONS")).status).toBe(200);
  await world.database
    .$executeRaw`UPDATE image_transfers SET updated_at = now() - interval '25 hours' WHERE id = ${paused}::uuid`;
  await world.reach(paused, "finished_cleanup");
  await Promise.all([cancel(forever.id), cancel(alsoPaused)]);
  await nothingIsLeft(world);
});

it("after kill -9 its successor goes on with the same tickets; without one nothing stays locked", {
  timeout: 240_000,
}, async () => {
  const [up, down] = [await world.addVolume("files", 8 * MiB), await world.addVolume("images", 8 * MiB)];
  const upload = await world.open({ volumeId: up, direction: "upload" });
  const download = await world.open({ volumeId: down });
  const data = randomBytesOf("before", 3 * MiB);
  expect((await upload.client.put(data, MiB)).status).toBe(200);
  expect((await download.client.get(0, 5)).equals(Buffer.alloc(5))).toBe(true);
  const server = async () =>
    (await world.instance.sql("SELECT pid FROM image_servers ORDER BY heartbeat_at DESC"))[0].pid;
  const first = await server();
  expect(childrenOf(first, "qemu-nbd")).toHaveLength(1);
  const [child = 0] = childrenOf(first, "qemu-nbd");
  process.kill(first, "SIGKILL");
  await world.instance.waitFor(() => !isAlive(first), { what: "the server has ended" });
  await world.instance.waitFor(() => !isAlive(child), { what: "its qemu-nbd has ended" });
  const successor = await world.instance.startTransfer();
  await world.instance.waitFor(async () => (await upload.client.put(data.subarray(0, MiB), 0)).status === 200, {
    what: "the upload goes on",
  });
  const five = async () => (await download.client.get(MiB, 5)).equals(Buffer.alloc(5));
  await world.instance.waitFor(five, { what: "the download goes on" });
  await finalize(upload.id);
  await world.reach(upload.id, "finished_success");
  const expected = Buffer.alloc(8 * MiB);
  data.copy(expected, MiB);
  data.copy(expected, 0, 0, MiB);
  expect((await world.bytesOf("files", up)).equals(expected)).toBe(true);

  const unfinished = await world.open({ volumeId: await world.addVolume("files", MiB), direction: "upload" });
  successor.kill("SIGKILL");
  await successor.exited;
  expect((await world.reach(download.id, "finished_failure")).url).toBe(null);
  expect(await world.statusOf(down)).toBe("available");
  await world.reach(unfinished.id, "paused_system");
  await cancel(unfinished.id);
  await world.reach(unfinished.id, "finished_cleanup");
  await nothingIsLeft(world);
  await world.instance.startTransfer();
  expect(readdirSync(world.imagesDir).filter((name) => name.startsWith(".restore-"))).toEqual([]);
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
