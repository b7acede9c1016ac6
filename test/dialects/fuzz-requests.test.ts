import { randomBytes } from "node:crypto";
import { Agent, request as httpRequest } from "node:http";
import { expect, it } from "vitest";
import { opsRoutes, v3Routes } from "../../apps/api/src/app.ts";
import type { Instance } from "../kit/instance.ts";
import { Random } from "../reliability/fuzz/random.ts";
import { type FuzzRequest, randomRequest, targetsOf } from "../reliability/fuzz/requests.ts";
import { finishBackup, setStatus, startApiOnly } from "./api-only.ts";

const project = "00000000000000000000000000000001";
/** Set TEPHRA_TEST_SEED to repeat a run; npm run fuzz does many more. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const count = Number(process.env["TEPHRA_FUZZ_REQUESTS"] ?? 1_500);
const runners = 8;
/** Requests between two rests. */
const turn = 200;
/** No answer needs so long: a request that takes longer hangs. */
const hangMs = 5_000;

/** A volume, a snapshot and two backups to ask about, beside ids that name nothing. */
async function makeIds(instance: Instance): Promise<string[]> {
  const make = async (collection: string, body: object): Promise<string> => {
    const reply = await instance.request("POST", `/v3/${project}/${collection}`, body);
    return (Object.values(reply.body)[0] as { id: string }).id;
  };
  const volume = await make("volumes", { volume: { size: 1, name: "name" } });
  await setStatus(instance, "volumes", volume, "available");
  const snapshot = await make("snapshots", { snapshot: { volume_id: volume, name: "name" } });
  await setStatus(instance, "snapshots", snapshot, "available");
  const full = await make("backups", { backup: { volume_id: volume, name: "name" } });
  await finishBackup(instance, full);
  const incremental = await make("backups", { backup: { volume_id: volume, incremental: true } });
  await finishBackup(instance, incremental);
  return [volume, snapshot, full, incremental, "11111111-2222-3333-4444-555555555555", project, "not-an-id"];
}

/** Everything rests again, as if workers had been there, so that later requests find something to act on. */
async function rest(instance: Instance): Promise<void> {
  await instance.sql(
    "UPDATE backups SET status = 'available', container = coalesce(container, 'c'), service_metadata = 'p'",
  );
  await instance.sql("UPDATE volumes SET status = 'available'");
  await instance.sql("UPDATE snapshots SET status = 'available'");
}

/** Cinder tells every refusal in JSON, with its status beside the text. */
function isFault(status: number, text: string): boolean {
  try {
    const [, code = ""] = /"code":"?(\d+)/.exec(JSON.stringify(JSON.parse(text))) ?? [];
    return Number(code) === status;
  } catch {
    return false;
  }
}

function ask(
  url: string,
  agent: Agent,
  { method, path, headers, body }: FuzzRequest,
): Promise<{ status: number; text: string }> {
  const { hostname, port } = new URL(url);
  // Without a length, the bytes of a body of GET or DELETE would be taken for the next request.
  const sent = body === null ? headers : { ...headers, "content-length": String(body.length) };
  return new Promise((resolve, reject) => {
    const options = { hostname, port, agent, method, path, headers: sent, timeout: hangMs };
    const request = httpRequest(options, (response) => {
      // A stream of events has no end.
      if (response.headers["content-type"]?.startsWith("text/event-stream") === true) {
        resolve({ status: response.statusCode ?? 0, text: "" });
        request.destroy();
        return;
      }
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", reject);
      response.on("end", () => resolve({ status: response.statusCode ?? 0, text }));
    });
    request.on("timeout", () => request.destroy(new Error(`no answer within ${hangMs} ms`)));
    request.on("error", reject);
    request.end(body ?? undefined);
  });
}

it(`answers ${count} random requests, none with 5xx and none too late (seed ${seed})`, {
  timeout: 60_000 + count * 40,
}, async () => {
  const unlimited = { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 };
  await using instance = await startApiOnly({ config: { quotas: unlimited, log_level: "warn" } });
  const ids = await makeIds(instance);
  const targets = targetsOf(v3Routes, opsRoutes);
  const agent = new Agent({ keepAlive: true, maxSockets: runners });
  const statuses = new Map<number, number>();
  const faults: string[] = [];
  const runner = async (first: number, end: number): Promise<void> => {
    for (let index = first; index < end; index += runners) {
      const request = randomRequest(targets, new Random(Math.imul(seed + index, 2654435761)), { project, ids });
      const shown = `request ${index}: ${request.method} ${request.path.slice(0, 300)} ${request.body?.toString().slice(0, 300)}`;
      const answer = await ask(instance.url, agent, request).catch((error: Error) => ({
        status: 599,
        text: error.message,
      }));
      statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1);
      const told = answer.status < 400 || request.method === "HEAD" || !request.path.startsWith("/v3");
      if (answer.status >= 500 || !(told || isFault(answer.status, answer.text)))
        faults.push(`${shown} → ${answer.status} ${answer.text.slice(0, 300)}`);
    }
  };
  for (let start = 0; start < count; start += turn) {
    await rest(instance);
    const end = Math.min(count, start + turn);
    await Promise.all(Array.from({ length: runners }, (_, i) => runner(start + i, end)));
  }
  agent.destroy();
  const summary = [...statuses].sort(([a], [b]) => a - b).map(([status, times]) => `${times} × ${status}`);
  process.stdout.write(`seed ${seed}, ${count} requests over ${targets.length} routes: ${summary.join(", ")}\n`);
  expect(faults, instance.logs()).toEqual([]);
  for (const status of [200, 202, 400, 404]) expect(statuses.get(status), `answers with ${status}`).toBeGreaterThan(0);
});
