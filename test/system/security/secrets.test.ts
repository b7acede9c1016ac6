import { createHash, randomBytes, randomUUID } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { Redis } from "ioredis";
import { expect, it } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { spawnProgram } from "../../../scripts/spawn-program.ts";
import { temporaryFolder } from "../../format/backup-fixture.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { startSwift } from "../../kit/swift.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

/** What must be found nowhere: no text that anything else could have. */
const secretOf = (name: string): string => `canary-${name}-${randomBytes(9).toString("hex")}`;

const secrets = {
  adminToken: secretOf("admin-token"),
  memberToken: secretOf("member-token"),
  wrongToken: secretOf("wrong-token"),
  storeKey: secretOf("store-key"),
  wrongStoreKey: secretOf("wrong-store-key"),
  redisPassword: secretOf("redis-password"),
  keystonePassword: secretOf("keystone-password"),
  webhookSecret: secretOf("webhook-secret"),
  masterKey: randomBytes(32).toString("base64"),
};
/** What a user says of a volume: rows, the project's own answers and whoever is told of its backups have it, nobody else. */
const told = secretOf("metadata");

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

/** Everything that was said, by where. */
type Heard = Record<string, string>;

/** Where any of the spellings of a secret stands. */
const placesOf = (heard: Heard, secret: string): string[] => {
  const spellings = [secret, Buffer.from(secret).toString("base64").replace(/=+$/, ""), encodeURIComponent(secret)];
  return Object.entries(heard)
    .filter(([, text]) => spellings.some((spelling) => text.includes(spelling)))
    .map(([place]) => place);
};

const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

async function readTables(house: Instance): Promise<Heard> {
  const tables = await house.sql(
    "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = current_schema()",
  );
  const heard: Heard = {};
  for (const { name } of tables) {
    const rows = await house.sql(`SELECT row_to_json(t)::text AS row FROM "${name}" t`);
    heard[`table ${name}`] = rows.map(({ row }) => row).join("\n");
  }
  return heard;
}

async function readRedis(redis: Redis): Promise<Heard> {
  const readers: Record<string, (key: string) => Promise<unknown>> = {
    string: (key) => redis.get(key),
    hash: (key) => redis.hgetall(key),
    list: (key) => redis.lrange(key, 0, -1),
    set: (key) => redis.smembers(key),
    zset: (key) => redis.zrange(key, "0", "-1"),
    stream: (key) => redis.xrange(key, "-", "+"),
  };
  const lines: string[] = [];
  for (const key of await redis.keys("*")) {
    const read = readers[String(await redis.type(key))];
    if (!read) throw new Error(`${key} is of a type that nobody reads`);
    lines.push(`${key} ${JSON.stringify(await read(key))}`);
  }
  return { redis: lines.join("\n") };
}

/** A webhook that keeps what it is told. */
async function startReceiver() {
  const received: string[] = [];
  const server = createServer((req, res) => {
    let body = "";
    req.setEncoding("utf8").on("data", (text: string) => {
      body += text;
    });
    req.on("end", () => {
      received.push(`${JSON.stringify(req.headers)} ${body}`);
      res.writeHead(204).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    received,
    url: `http://127.0.0.1:${port}/`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

it("no secret is in a log, a row, a job, an answer, a notification, a repository or a command line", {
  timeout: 600_000,
}, async () => {
  await using folder = await temporaryFolder();
  await using store = await startSwift({ key: secrets.storeKey });
  await using receiver = await startReceiver();
  const logs = join(folder.path, "logs");
  const keyFile = join(folder.path, "keys");
  writeFileSync(keyFile, `1:${secrets.masterKey}\n`, { mode: 0o600 });
  const credentials = (name: string, key: string): string => {
    const path = join(folder.path, name);
    writeFileSync(path, JSON.stringify({ access_key: store.user, secret_key: key, user: store.user, key }), {
      mode: 0o600,
    });
    return path;
  };
  const right = credentials("right.json", secrets.storeKey);
  const wrong = credentials("wrong.json", secrets.wrongStoreKey);
  const places = { s3: `b-${randomUUID()}`, swift: `c-${randomUUID()}` };
  const swift = `swift:${places.swift}?auth=v1&auth_url=${store.url}/auth/v1.0&retries=1`;
  const s3 = `s3://${places.s3}?endpoint=${store.url}&retries=1`;
  for (const url of [swift, s3]) await initialiseRepository(`${url}&credentials=${encodeURIComponent(right)}`);
  const hidden = join(folder.path, "hidden");
  await initialiseRepository(`posix:${hidden}`);
  const tokenOf = (token: string, role: string) => ({
    sha256: sha256(token),
    user_id: role,
    project_id: project,
    roles: [role],
  });

  await using house = await startInstance({
    workers: 0,
    api: false,
    ownRedis: true,
    logs,
    redisPassword: secrets.redisPassword,
    config: {
      log_level: "trace",
      auth: {
        mode: "static",
        tokens: [tokenOf(secrets.adminToken, "admin"), tokenOf(secrets.memberToken, "member")],
        keystone: { url: "http://127.0.0.1:1", username: "tephra", password: secrets.keystonePassword },
      },
      notifications: {
        webhooks: [{ name: "ear", url: receiver.url, secret: secrets.webhookSecret }],
        poll_ms: 200,
      },
      tasks: { attempts_max: 2, backoff_ms: 100, unplaced_timeout_ms: 3_000, reconcile_ms: 300 },
      worker: { slots: 4, lease_ms: 2_000, heartbeat_ms: 400 },
      repositories: [
        { name: "hidden", url: `posix:${hidden}`, zone: "hidden", default: true, encryption: { key_file: keyFile } },
        // Its keys stand in the configuration itself.
        { name: "s3", url: s3, zone: "s3", access_key: store.user, secret_key: secrets.storeKey },
        { name: "swift", url: swift, zone: "swift", credentials: right },
        { name: "refused-s3", url: s3, zone: "refused-s3", credentials: wrong },
        { name: "refused-swift", url: swift, zone: "refused-swift", credentials: wrong },
      ],
    },
  });
  const databasePassword = new URL(house.databaseUrl).password;
  expect(databasePassword.length).toBeGreaterThan(12);
  await house.startApi();
  await house.startWorker();

  const answers: string[] = [];
  const request: Instance["request"] = async (method, path, body, headers = {}) => {
    const reply = await house.request(method, path, body, {
      "x-auth-token": secrets.adminToken,
      "openstack-api-version": "volume 3.60",
      ...headers,
    });
    answers.push(`${method} ${path} ${reply.status} ${JSON.stringify([...reply.headers])} ${reply.text}`);
    return reply;
  };
  await live({ ...house, request });
  const commandLines = processesOf(house).map((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8"));
  await breakThings({ ...house, request }, logs);

  const heard: Heard = {
    ...(await readTables(house)),
    ...(await readRedis(house.redis)),
    answers: answers.join("\n"),
    notifications: receiver.received.join("\n"),
    "command lines": commandLines.join("\n"),
    "a refused configuration": await refusedConfiguration(folder.path),
  };
  for (const path of filesBelow(logs)) heard[`log ${path}`] = readFileSync(path, "utf8");
  for (const path of filesBelow(hidden)) heard[`repository ${path}`] = readFileSync(path, "latin1");

  for (const [name, secret] of Object.entries({ ...secrets, databasePassword }))
    expect(placesOf(heard, secret), name).toEqual([]);
  // What a user says of a volume shows that a secret would have been found; logs, queue and an encrypted repository keep quiet about it, too.
  const found = placesOf(heard, told);
  expect(found).toContain("table volumes");
  expect(found).toContain("answers");
  for (const place of found) expect(place).toMatch(/^(table|answers|notifications)/);
  expect(receiver.received.length).toBeGreaterThan(3);
  for (const place of Object.keys(heard).filter((name) => name.startsWith("log "))) expect(heard[place]).not.toBe("");
  // What the log does have of a request.
  const line = heard[`log ${join(logs, "api.log")}`]?.split("\n").find((text) => text.includes("/ops/audit"));
  expect(JSON.parse(line ?? "{}")).toMatchObject({
    req: { method: "GET", url: "/ops/audit" },
    res: { status: 200 },
    request_id: expect.stringMatching(/^req-/),
    msg: "request",
  });
});

const processesOf = (house: Instance): number[] => house.workers.map(({ pid }) => pid);

/** Everything that a service does, with every repository. */
async function live(house: Instance): Promise<void> {
  const user = journeyOn(house, { patienceMs: 120_000 });
  const image = join(house.dataDir, "disk.img");
  await writeIslands(image, 2 * MiB, [{ offset: 0, data: randomBytesOf("disk", MiB) }]);
  const volume = await user.importVolume(image);
  const metadata = { metadata: { key: told } };
  expect((await house.request("POST", `${base}/volumes/${volume}/metadata`, metadata)).status).toBe(200);
  for (const zone of ["hidden", "s3", "swift"]) {
    const id = await user.backUp(volume, { availability_zone: zone, name: zone });
    const target = await user.restore(id);
    await user.accepted("DELETE", `${base}/volumes/${target}`);
    await user.get(`${base}/backups/${id}/export_record`);
  }
  const child = await user.backUp(volume, { incremental: true });
  const { operation } = await user.accepted("POST", `/ops/backups/${child}/verify`, { mode: "deep" });
  await user.get(`/ops/operations/${operation.id}`);
  await user.deleteBackup(child);
  for (const zone of ["refused-s3", "refused-swift"]) {
    const refused = await user.startBackup(volume, { availability_zone: zone });
    await user.settled("backups", refused, "error");
    await user.get(`${base}/backups/${refused}`);
  }
  await house.request("POST", "/ops/repositories/refused-s3/rescan", {});
  for (const path of ["/ops/operations", "/ops/audit", "/metrics", "/openapi.json", "/ops/queues/api/queues"]) {
    await user.get(path);
  }
  await user.get(`${base}/volumes/detail`);
  await user.get(`${base}/messages`);
  const basic = (token: string) => ({ authorization: `Basic ${Buffer.from(`x:${token}`).toString("base64")}` });
  await house.request("GET", "/ops/queues", undefined, {
    ...basic(secrets.memberToken),
    "x-auth-token": secrets.memberToken,
  });
  for (const token of [secrets.memberToken, secrets.wrongToken]) {
    await house.request("GET", `${base}/backups/detail`, undefined, { "x-auth-token": token });
    await house.request("GET", "/ops/audit", undefined, { "x-auth-token": token, ...basic(token) });
    await house.request("POST", `${base}/backups`, "{ no JSON", { "x-auth-token": token });
  }
}

/** Connections break and passwords are refused, which is when programs become talkative. */
async function breakThings(house: Instance, logs: string): Promise<void> {
  await house.sql(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
  );
  const now = "another password";
  await house.redis.config("SET", "requirepass", now);
  await house.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  const refused = async (): Promise<boolean> => {
    await house.request("GET", "/ops/queues/api/queues");
    return filesBelow(logs).every((path) => readFileSync(path, "utf8").includes("WRONGPASS"));
  };
  await waitFor(refused, { what: "every program has told that Redis refuses its password", timeoutMs: 60_000 });
  await house.redis.config("SET", "requirepass", secrets.redisPassword);
  const answers = async () => (await house.request("GET", "/readyz")).status === 200;
  await house.waitFor(answers, { what: "the API is ready again", timeoutMs: 60_000 });
}

/** What a program says of a configuration that is wrong wherever it holds a secret. */
async function refusedConfiguration(folder: string): Promise<string> {
  const dir = join(folder, "refused");
  mkdirSync(dir);
  const path = join(dir, "tephra.yml");
  const config = {
    auth: {
      mode: "static",
      tokens: [{ sha256: secrets.adminToken }],
      keystone: { url: secrets.keystonePassword, password: 5 },
    },
    notifications: { webhooks: [{ name: "ear", url: `http://x:${secrets.webhookSecret}@there/`, secret: 5 }] },
    repositories: [{ name: "s3", url: secrets.storeKey, secret_key: ["5"], [secrets.wrongStoreKey.slice(0, 3)]: 1 }],
  };
  writeFileSync(path, JSON.stringify(config));
  const log = join(dir, "log");
  for (const app of ["api", "worker"]) {
    const env = { TEPHRA_CONFIG: path, DATABASE_URL: secrets.wrongToken, REDIS_URL: secrets.redisPassword };
    const args = [join(root, `apps/${app}/dist/main.js`)];
    const program = await spawnProgram({ name: app, command: projectNode(), args, env, log });
    expect((await program.exited).code).toBe(2);
  }
  const text = await waitFor(() => readFileSync(log, "utf8"), { what: "the log is written" });
  expect(text).toContain("notifications.webhooks.0.url");
  return text;
}
