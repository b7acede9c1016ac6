import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";
import { startTraceCollector } from "../../kit/trace-collector.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;
const sizeBytes = 5 * MiB + 4096;

let server: SwiftServer;
let dir = "";
beforeAll(async () => {
  server = await startSwift();
  dir = mkdtempSync(join(tmpdir(), "tephra-traces-"));
});
afterAll(async () => {
  rmSync(dir, { recursive: true });
  await server[Symbol.asyncDispose]();
});

/** A way to a server that keeps all that clients say to it. */
async function startTap(port: number): Promise<AsyncDisposable & { port: number; heard: () => string }> {
  const chunks: Buffer[] = [];
  const tap = createServer((client) => {
    const there = connect(port, "127.0.0.1");
    client.on("data", (chunk) => chunks.push(chunk)).on("error", () => there.destroy());
    there.on("error", () => client.destroy());
    client.pipe(there).pipe(client);
  });
  tap.listen(0, "127.0.0.1");
  await once(tap, "listening");
  return {
    port: (tap.address() as AddressInfo).port,
    heard: () => Buffer.concat(chunks).toString("latin1"),
    [Symbol.asyncDispose]: async () => void tap.close(),
  };
}

/** The requests of a tap's text: what was asked, and the trace that it says it belongs to. */
const requestsIn = (text: string): { method: string; path: string; trace: string | undefined }[] =>
  [...text.matchAll(/(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP\/1\.1\r\n(.*?)\r\n\r\n/gs)].map(
    ([, method = "", path = "", headers = ""]) => ({
      method,
      path,
      trace: /^traceparent: 00-(\w{32})-/im.exec(headers)?.[1],
    }),
  );

/** Imports a volume of several ranges. */
async function importVolume(instance: Instance): Promise<string> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, sizeBytes, [{ offset: 0, data: randomBytesOf("traces", sizeBytes) }]);
  return journeyOn(instance).importVolume(image);
}

/** Has whoever loads a module of OpenTelemetry note it in a file; but of its API, which prom-client loads anyway. */
function noteLoads(file: string): Record<string, string> {
  const hook = join(dir, `hook-${randomUUID()}.mjs`);
  writeFileSync(
    hook,
    `import { appendFileSync } from "node:fs";
     import { registerHooks } from "node:module";
     registerHooks({ load(url, context, next) {
       if (/@opentelemetry.(?!api.)|bullmq-otel/.test(url)) appendFileSync(${JSON.stringify(file)}, url + "\\n");
       return next(url, context);
     } });`,
  );
  return { NODE_OPTIONS: `--import=${hook}` };
}

describe.each(["s3", "swift"] as const)("a backup into %s", (driver) => {
  test("is one trace, from the request through job, task rows and log lines to the last object that is put", async () => {
    await using collector = await startTraceCollector();
    await using tap = await startTap(Number(new URL(server.url).port));
    const place = `t-${randomUUID()}`;
    const credentials = join(dir, `${driver}.json`);
    const names = driver === "s3" ? ["access_key", "secret_key"] : ["user", "key"];
    writeFileSync(credentials, JSON.stringify({ [String(names[0])]: server.user, [String(names[1])]: server.key }));
    const at = `http://127.0.0.1:${tap.port}`;
    // Swift itself would send its clients past the tap: its storage URL is that of its own port.
    const reached = driver === "s3" ? at : server.url;
    const url =
      driver === "s3" ? `s3://${place}?endpoint=${reached}` : `swift:${place}?auth=v1&auth_url=${reached}/auth/v1.0`;
    await initialiseRepository(`${url}&credentials=${encodeURIComponent(credentials)}`);
    const logs = join(dir, `logs-${driver}`);
    const loads = join(dir, `loads-${driver}`);
    await using instance = await startInstance({
      logs,
      env: noteLoads(loads),
      config: {
        repositories: [{ name: "main", url, credentials, object_bytes: MiB }],
        range_bytes: 2 * MiB,
        tracing: { endpoint: collector.endpoint, headers: { "x-collector-token": "kept" } },
      },
    });
    const volume = await importVolume(instance);
    const body = { backup: { volume_id: volume, name: "traced" } };
    const answer = await instance.request("POST", `/v3/${project}/backups`, body);
    expect(answer.status, answer.text).toBe(202);
    const [, trace = "none", rootSpan] = answer.headers.get("traceresponse")?.split("-") ?? [];
    expect(trace).toMatch(/^[0-9a-f]{32}$/);
    const id = answer.body.backup.id;
    const user = journeyOn(instance);
    await user.settled("backups", id, "available");
    await user.expectQuiet();
    // A request with a secret in its query, and one that is in nobody's trace.
    await instance.request("GET", "/ops/operations?state=SECRET");
    await instance.request("GET", "/readyz");

    const tasks = await instance.sql(
      "SELECT t.id, t.kind, t.trace_parent FROM tasks t JOIN operations o ON o.id = t.operation_id WHERE o.backup_id = $1",
      [id],
    );
    expect(new Set(tasks.map(({ kind }) => kind))).toEqual(new Set(["plan-backup", "copy", "seal", "tidy"]));
    expect(new Set(tasks.map(({ trace_parent: parent }) => parent.split("-")[1]))).toEqual(new Set([trace]));
    for (const { id: task, trace_parent: parent } of tasks) {
      const [key = "no job"] = await instance.redis.keys(`bull:tephra-*:t-${task}-1`);
      expect(await instance.redis.hget(key, "opts")).toContain(parent);
    }

    await instance.killApi("SIGTERM");
    await instance.workers[0]?.stop();
    const lines = readdirSync(logs).flatMap((name) => readFileSync(join(logs, name), "utf8").trim().split("\n"));
    const parsed = lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
    const ofTrace = parsed.filter(({ trace_id: one }) => one === trace);
    const events = ofTrace.map(({ program, event, msg }) => `${program} ${event ?? msg}`);
    expect(new Set(events)).toEqual(new Set(["api request", "worker task.claimed", "worker task.finished"]));
    expect(events.filter((event) => event === "worker task.finished")).toHaveLength(tasks.length);

    const spans = await waitFor(
      () => {
        const own = collector.spans.filter(({ traceId }) => traceId === trace);
        return own.some(({ name }) => name === "task tidy") && own;
      },
      { what: "the collector has the last span" },
    );
    const ids = new Set(spans.map(({ spanId }) => spanId));
    const roots = spans.filter(({ parentSpanId }) => parentSpanId === undefined || !ids.has(parentSpanId));
    expect(roots.map(({ spanId, kind, program }) => [spanId, kind, program])).toEqual([[rootSpan, 2, "api"]]);
    const named = new Set(spans.map(({ name }) => name));
    for (const { kind } of tasks) expect(named).toContain(`task ${kind}`);
    expect(spans.some(({ kind, program }) => kind === 5 && program === "worker")).toBe(true);
    const puts = spans.filter(({ kind, attributes }) => kind === 3 && attributes["http.request.method"] === "PUT");
    const last = puts
      .map(({ attributes }) => String(attributes["url.full"]))
      .filter((one) => one.includes("_metadata"));
    expect(last).toHaveLength(1);
    if (driver === "s3") {
      const asked = requestsIn(tap.heard()).filter(({ path }) => path.includes(`backup_${id}`));
      expect(asked.filter(({ method }) => method === "PUT").length).toBeGreaterThanOrEqual(8);
      expect(new Set(asked.map((each) => each.trace))).toEqual(new Set([trace]));
    }

    // Nothing else begins a trace: neither probes, nor a queue or a worker that has nothing to do.
    const firsts = collector.spans.filter(({ parentSpanId }) => parentSpanId === undefined);
    for (const { kind, name } of firsts) expect(kind === 2 || name.startsWith("task "), name).toBe(true);
    const paths = firsts.map(({ attributes }) => attributes["url.path"]);
    expect(paths).not.toContain("/readyz");
    expect(paths).toContain("/ops/operations");
    expect(JSON.stringify(collector.spans)).not.toContain("SECRET");
    expect(collector.headers["x-collector-token"]).toBe("kept");
    expect(readFileSync(loads, "utf8")).toMatch(/bullmq-otel/);
  });
});

test("a part of the traces is a part of the whole way: what is not recorded is nowhere", async () => {
  await using collector = await startTraceCollector();
  await using instance = await startInstance({
    config: { range_bytes: 2 * MiB, tracing: { endpoint: collector.endpoint, sample_ratio: 0 } },
  });
  const volume = await importVolume(instance);
  // A client cannot have its trace recorded, either.
  const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
  const body = { backup: { volume_id: volume } };
  const answer = await instance.request("POST", `/v3/${project}/backups`, body, { traceparent });
  expect(answer.headers.get("traceresponse")).toMatch(/^00-a{32}-\w{16}-00$/);
  await journeyOn(instance).settled("backups", answer.body.backup.id, "available");
  await instance.killApi("SIGTERM");
  await instance.workers[0]?.stop();
  expect(collector.spans).toEqual([]);
});

test("a collector that is gone keeps nobody from working or from stopping", async () => {
  await using instance = await startInstance({ config: { tracing: { endpoint: "http://127.0.0.1:9/v1/traces" } } });
  const volume = await importVolume(instance);
  await journeyOn(instance).backUp(volume, { name: "untold" });
  await instance.killApi("SIGTERM");
  expect(await instance.workers[0]?.stop()).toEqual({ code: 0, signal: null });
});

test("where tracing is not configured, nothing of it is loaded, and nothing is said of traces", async () => {
  const loads = join(dir, "loads-off");
  await using instance = await startInstance({ env: noteLoads(loads) });
  const volume = await importVolume(instance);
  const backup = await journeyOn(instance).backUp(volume, { name: "untraced" });
  const shown = await instance.request("GET", `/v3/${project}/backups/${backup}`);
  expect(shown.headers.get("traceresponse")).toBeNull();
  expect(await instance.sql("SELECT count(*)::int AS n FROM tasks WHERE trace_parent IS NOT NULL")).toEqual([{ n: 0 }]);
  expect(existsSync(loads)).toBe(false);
});
