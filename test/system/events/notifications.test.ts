import { spawnSync } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, inject, it } from "vitest";
import { root } from "../../../scripts/bootstrap.mjs";
import { systemPython } from "../../../scripts/debian-packages.ts";
import { makeCertificate } from "../../kit/certificate.ts";
import { eventStream } from "../../kit/global-setup.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { startTlsProxy } from "../../kit/tls-proxy.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;
const secret = "a secret of some length";

interface Received {
  // biome-ignore lint/suspicious/noExplicitAny: the payload is what the tests look into
  message: any;
  signed: boolean;
  status: number | null;
  headers: IncomingHttpHeaders;
  /** Method and path. */
  asked: string;
  body: string;
  /** By the clock of this process. */
  atMs: number;
}

/** A real receiver: answers `statusOf(n)` to its n-th request, null being never, and says of each whether its signature is right. */
async function startReceiver(statusOf: (count: number) => number | null = () => 204) {
  const received: Received[] = [];
  const server = createServer((req, res) => {
    const chunks: Buffer[] = [];
    req.on("data", (chunk: Buffer) => chunks.push(chunk));
    req.on("end", () => {
      const body = Buffer.concat(chunks);
      const time = String(req.headers["x-tephra-timestamp"]);
      const hmac = createHmac("sha256", secret).update(`${time}.`).update(body).digest("hex");
      const fresh = Math.abs(Date.now() / 1000 - Number(time)) < 60;
      const status = statusOf(received.length);
      const signed = fresh && req.headers["x-tephra-signature"] === `sha256=${hmac}`;
      const text = body.toString();
      received.push({
        message: JSON.parse(text || "null"),
        signed,
        status,
        headers: req.headers,
        asked: `${req.method} ${req.url}`,
        body: text,
        atMs: performance.now(),
      });
      if (status === null) return;
      res.writeHead(status, status === 302 ? { location: "/elsewhere" } : {}).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    received,
    url: `http://127.0.0.1:${port}/hook`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** What docs/notifications.md tells receivers to do, done to a real delivery and to forgeries of it. */
function expectDocumentedCheck({ headers, body }: Received): void {
  const page = readFileSync(join(root, "docs/notifications.md"), "utf8");
  const [, check = ""] = /```python\n(.*?)```/s.exec(page) ?? [];
  const program = `${check}\nimport json, sys\nfor s, h, b in json.load(sys.stdin): print(is_genuine(s, h, b.encode()))\n`;
  const old = { ...headers, "x-tephra-timestamp": String(Number(headers["x-tephra-timestamp"]) - 1) };
  const oldSignature = createHmac("sha256", secret).update(`1000000000.${body}`).digest("hex");
  const stale = {
    ...headers,
    "x-tephra-timestamp": "1000000000",
    "x-tephra-signature": `sha256=${oldSignature}`,
  };
  const cases = [
    [secret, headers, body],
    [secret, headers, `${body} `],
    ["another secret of some length", headers, body],
    [secret, old, body],
    [secret, stale, body],
    [secret, { ...headers, "x-tephra-signature": "" }, body],
  ];
  const { stdout, stderr } = spawnSync(systemPython, ["-c", program], {
    input: JSON.stringify(cases),
    encoding: "utf8",
  });
  expect(stdout.trim().split("\n"), stderr).toEqual(["True", "False", "False", "False", "False", "False"]);
}

/** Puts an event into the outbox as a status change does, without one. */
async function putEvent(instance: Instance): Promise<string> {
  const id = randomUUID();
  await instance.sql(
    "INSERT INTO notifications (id, event_type, host, payload) VALUES ($1, 'backup.create.end', 'h', '{}')",
    [id],
  );
  return id;
}

const quick = { backoff_ms: 50, poll_ms: 50 };

/** Waits until every target has been told all that there is, or is given up. */
const told = (instance: Instance): Promise<unknown> => {
  const untold = `SELECT FROM notifications n WHERE NOT spread
    OR EXISTS (SELECT FROM deliveries d WHERE d.notification_id = n.id AND d.state = 'pending')`;
  return instance.waitFor(async () => (await instance.sql(untold)).length === 0, { what: "all is told, or given up" });
};

it("tells webhook, stream and log of every event of a backup, signed, with a true percentage", {
  timeout: 120_000,
}, async () => {
  await using receiver = await startReceiver();
  const webhooks = [{ name: "hook", url: receiver.url, secret }];
  const notifications = { ...quick, webhooks, redis_stream: eventStream, log: true };
  await using instance = await startInstance({
    config: { notifications, range_bytes: MiB, worker: { slots: 2 } },
    repository: { object_bytes: 512 * 1024 },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 8 * MiB, [{ offset: 0, data: randomBytesOf("events", 8 * MiB) }]);
  const volume = await user.importVolume(image);
  const id = await user.backUp(volume, { name: "told" });
  await user.restore(id);
  const reset = await instance.request("POST", `${base}/backups/${id}/action`, {
    "os-reset_status": { status: "error" },
  });
  expect(reset.status).toBe(202);
  await user.deleteBackup(id);
  // They go out side by side: the last event may be told before others.
  await told(instance);

  const { received } = receiver;
  expectDocumentedCheck(received[0] as Received);
  expect(received.every(({ signed }) => signed)).toBe(true);
  const messages = received.map(({ message }) => message);
  expect(new Set(messages.map((m) => m.message_id)).size).toBe(messages.length);
  const order = await instance.sql("SELECT id FROM notifications ORDER BY sequence");
  const sorted = order.map((row) => messages.find((m) => m.message_id === row.id));
  expect(sorted.map((m) => m.event_type).filter((type) => type !== "backup.createprogress")).toEqual([
    "backup.create.start",
    "backup.create.end",
    "backup.restore.start",
    "backup.restore.end",
    "backup.reset_status.start",
    "backup.reset_status.end",
    "backup.delete.start",
    "backup.delete.end",
  ]);
  const progress = sorted.filter((m) => m.event_type === "backup.createprogress").map((m) => m.payload.backup_percent);
  expect(progress).toEqual([12, 25, 37, 50, 62, 75, 87, 100]);
  expect(sorted.at(0)).toMatchObject({
    priority: "INFO",
    publisher_id: expect.stringMatching(/^backup\../),
    timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$/),
    payload: {
      tenant_id: project,
      user_id: "admin",
      backup_id: id,
      display_name: "told",
      status: "creating",
      volume_id: volume,
      size: 1,
      service: "cinder.backup.drivers.posix.PosixBackupDriver",
      service_metadata: expect.stringContaining(id),
      fail_reason: null,
      parent_id: null,
      num_dependent_backups: 0,
      snapshot_id: null,
      created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$/),
    },
  });
  expect(Object.keys(sorted[0].payload).sort()).toEqual(
    "availability_zone backup_id created_at display_name fail_reason host num_dependent_backups parent_id service service_metadata size snapshot_id status tenant_id user_id volume_id".split(
      " ",
    ),
  );
  const statuses = sorted.filter((m) => m.event_type.endsWith(".end")).map((m) => m.payload.status);
  expect(statuses).toEqual(["available", "available", "error", "deleted"]);

  const entries = await instance.redis.xrange(eventStream, "-", "+");
  expect(entries.map(([, fields]) => JSON.parse(fields[3] ?? "").message_id).sort()).toEqual(
    messages.map((m) => m.message_id).sort(),
  );
  await instance.waitFor(() => instance.logs().includes('"backup.delete.end"'), { what: "the log has the last event" });
});

it("tries again what a webhook does not take, keeps what it never takes for an admin, and sends that again", {
  timeout: 120_000,
}, async () => {
  let taking = false;
  await using flaky = await startReceiver((count) => [500, 302, 204][Math.min(count, 2)] ?? 204);
  await using stubborn = await startReceiver(() => (taking ? 200 : 503));
  const webhooks = [
    { name: "flaky", url: flaky.url, secret },
    { name: "stubborn", url: stubborn.url, secret },
    { name: "nobody", url: "http://127.0.0.1:9/", secret },
  ];
  await using instance = await startInstance({
    config: { notifications: { ...quick, webhooks, attempts_max: 3, poll_ms: 20 } },
  });
  const user = journeyOn(instance);
  const volume = await user.createVolume(1);
  await instance.sql("UPDATE volumes SET size_bytes = 1048576 WHERE id = $1", [volume]);
  await writeIslands(user.volumeFile(volume), MiB, []);
  const id = await user.backUp(volume);
  const listed = async (state: string) =>
    (await user.get(`/ops/notifications?state=${state}`)).notifications as {
      id: string;
      target: string;
      last_error: string;
    }[];
  await told(instance);
  const dead = await listed("dead");
  expect(dead).toHaveLength(6);
  expect(dead.filter((d) => d.target === "webhook:stubborn").map((d) => d.last_error)).toEqual(
    Array(3).fill("answered 503"),
  );
  expect(dead.filter((d) => d.target === "webhook:nobody").every((d) => d.last_error.length > 0)).toBe(true);
  expect(stubborn.received).toHaveLength(9);
  // A redirect is no delivery, and is not followed.
  expect(new Set(flaky.received.map(({ asked }) => asked))).toEqual(new Set(["POST /hook"]));
  expect(flaky.received.map((r) => r.status).filter((status) => status !== 204)).toEqual([500, 302]);
  expect(new Set(flaky.received.map(({ message }) => message.message_id)).size).toBe(3);
  expect((await listed("delivered")).map((d) => d.target)).toEqual(Array(3).fill("webhook:flaky"));
  expect((await user.get(`${base}/backups/${id}`)).backup.status).toBe("available");

  taking = true;
  const again = dead.find((d) => d.target === "webhook:stubborn");
  await user.accepted("POST", `/ops/notifications/${again?.id}/retry`);
  await instance.waitFor(async () => (await listed("delivered")).length === 4, { what: "it is delivered at last" });
  expect((await instance.request("POST", `/ops/notifications/${again?.id}/retry`)).status).toBe(404);
  expect((await instance.request("POST", "/ops/notifications/nope/retry")).status).toBe(404);
});

it("waits longer after each attempt, and goes on where a worker died in the middle of one", {
  timeout: 120_000,
}, async () => {
  await using slow = await startReceiver((count) => (count < 3 ? 503 : 204));
  let silent = true;
  await using deaf = await startReceiver(() => (silent ? null : 204));
  const webhooks = [
    { name: "slow", url: slow.url, secret },
    { name: "deaf", url: deaf.url, secret },
  ];
  const notifications = { ...quick, webhooks, backoff_ms: 300, timeout_ms: 3000 };
  await using instance = await startInstance({ config: { notifications } });
  const id = await putEvent(instance);
  await instance.waitFor(() => deaf.received.length === 1, { what: "an attempt is under way" });
  await instance.workers[0]?.stop({ signal: "SIGKILL" });
  silent = false;
  await instance.startWorker();
  const ended = () =>
    instance.sql("SELECT target, attempts FROM deliveries WHERE state = 'delivered' ORDER BY target DESC");
  await instance.waitFor(async () => (await ended()).length === 2, { what: "both have it" });
  const [bySlow, byDeaf] = await ended();
  expect(byDeaf).toEqual({ target: "webhook:deaf", attempts: 2 });
  expect(bySlow.target).toBe("webhook:slow");
  expect(bySlow.attempts).toBeGreaterThanOrEqual(4);
  expect([...slow.received, ...deaf.received].every(({ message }) => message.message_id === id)).toBe(true);
  const pauses = slow.received.slice(1).map(({ atMs }, i) => atMs - (slow.received[i]?.atMs ?? 0));
  for (const [i, pause] of pauses.entries()) expect(pause).toBeGreaterThanOrEqual(300 * 2 ** i);
});

it("sends to a webhook over TLS, with the authority that the configuration names for it and no other", {
  timeout: 120_000,
}, async () => {
  await using receiver = await startReceiver();
  const files = await makeCertificate(join(inject("servers").dir, "webhook"));
  await using proxy = await startTlsProxy(files, Number(new URL(receiver.url).port));
  const url = `https://localhost:${proxy.port}/hook`;
  const webhooks = [
    { name: "trusting", url, secret, ca: files.ca },
    { name: "wary", url, secret },
  ];
  await using instance = await startInstance({ config: { notifications: { ...quick, webhooks } } });
  const id = await putEvent(instance);
  const rows = () => instance.sql("SELECT target, state, last_error FROM deliveries ORDER BY target");
  const settled = async () => {
    const [trusting, wary] = await rows();
    return trusting?.state === "delivered" && wary?.last_error !== null && wary;
  };
  await instance.waitFor(settled, { what: "one has it, and the other was tried" });
  const [, wary] = await rows();
  expect(wary).toMatchObject({
    target: "webhook:wary",
    state: "pending",
    last_error: expect.stringMatching(/certificate/i),
  });
  expect(receiver.received.map(({ message, signed }) => [message.message_id, signed])).toEqual([[id, true]]);
});

it("forgets what every target has after a day, and what one never took after thirty", { timeout: 60_000 }, async () => {
  await using instance = await startInstance({ workers: 0, config: { notifications: { ...quick, log: true } } });
  const put = async (state: string, days: number): Promise<string> => {
    const id = await putEvent(instance);
    await instance.sql(
      "UPDATE notifications SET spread = true, created_at = now() - $2 * interval '1 day' WHERE id = $1",
      [id, days],
    );
    await instance.sql("INSERT INTO deliveries (id, notification_id, target, state) VALUES ($1, $1, 'webhook:x', $2)", [
      id,
      state,
    ]);
    return id;
  };
  const kept = [await put("delivered", 0.9), await put("dead", 1.1), await put("dead", 29.9)];
  for (const [state, days] of [
    ["delivered", 1.1],
    ["dead", 30.1],
    ["pending", 30.1],
  ] as const)
    await put(state, days);
  await instance.setDue("forget-notifications");
  const rows = () => instance.sql("SELECT id FROM notifications");
  await instance.waitFor(async () => (await rows()).length === 3, { what: "the old ones are forgotten" });
  expect((await rows()).map(({ id }) => id).sort()).toEqual(kept.sort());
  const { text } = await instance.request("GET", "/metrics");
  expect(text).toMatch(/^tephra_notifications_dead 2$/m);
  expect(text).toMatch(/^tephra_notifications_pending 0$/m);
});
