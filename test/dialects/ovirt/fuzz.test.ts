import { randomBytes } from "node:crypto";
import { Agent, request as httpRequest } from "node:http";
import { expect, it } from "vitest";
import { isBelow } from "../../../apps/api/src/ovirt/address.ts";
import { readXml } from "../../../apps/api/src/ovirt/codec-xml.ts";
import { ovirtRoutes } from "../../../apps/api/src/ovirt/routes.ts";
import type { Instance } from "../../kit/instance.ts";
import { times } from "../../kit/long.ts";
import { patience } from "../../kit/wait-for.ts";
import { type OvirtTarget, randomOvirtRequest } from "../../reliability/fuzz/ovirt-requests.ts";
import { Random } from "../../reliability/fuzz/random.ts";
import type { FuzzRequest } from "../../reliability/fuzz/requests.ts";
import { basic, projects, startEngine } from "./engine.ts";
import { beatImageServer, fillPath, forgetProject, makeWorld, sampleBodies, type World } from "./world.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const count = Number(process.env["TEPHRA_FUZZ_REQUESTS"] ?? times({ usual: 1_500, long: 100_000 }));
const runners = 8;
/** Requests in one world. */
const turn = 250;
/** No answer needs so long: a request that takes longer hangs. */
const hangMs = 5_000 * patience;
const member = "admin@internal";

interface Answer {
  status: number;
  type: string;
  text: string;
}

function send(url: string, agent: Agent, { method, path, headers, body }: FuzzRequest): Promise<Answer> {
  const { hostname, port } = new URL(url);
  // Without a length, the bytes of a body of GET or DELETE would be taken for the next request.
  const sent = body === null ? headers : { ...headers, "content-length": String(body.length) };
  return new Promise((resolve, reject) => {
    const options = { hostname, port, agent, method, path, headers: sent, timeout: hangMs };
    const request = httpRequest(options, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", reject);
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, type: response.headers["content-type"] ?? "", text }),
      );
    });
    request.on("timeout", () => request.destroy(new Error(`no answer within ${hangMs} ms`)));
    request.on("error", reject);
    request.end(body ?? undefined);
  });
}

/** Answers without a body, but for those to HEAD. */
const bare = [400, 401, 404, 405, 406, 417];

/** What is wrong with an answer: its status, or a body that its own form cannot hold. Null when nothing is. */
function problemOf(request: FuzzRequest, { status, type, text }: Answer): string | null {
  if (status >= 500) return "an internal error";
  if (request.method === "HEAD") return text === "" ? null : "HEAD has a body";
  // What is not of this dialect is told by another.
  if (!isBelow(request.path.split("?")[0] ?? "")) return null;
  if (text === "") return bare.includes(status) ? null : "no body";
  try {
    if (type.startsWith("application/json")) {
      const { fault = null, ...body } = JSON.parse(text);
      const told = (body.detail ?? fault?.detail) !== undefined;
      return status < 400 || told ? null : "a refusal without a fault";
    }
    const root = readXml(text);
    const fault = root.name === "action" ? root.at("fault") : root;
    return status < 400 || (fault?.has("detail") && fault.has("reason")) ? null : "a refusal without a fault";
  } catch (error) {
    return `cannot be read: ${(error as Error).message}`;
  }
}

const idsOf = (world: World): string[] => [
  ...[world.machine, world.disk, world.free, world.nic, world.snapshot, world.layer, world.transfer, world.job],
  "11111111-2222-3333-4444-555555555555",
  world.machine.toUpperCase(),
  "not-an-id",
];

const targetsOf = (world: World): OvirtTarget[] =>
  ovirtRoutes.map(([method, path]) => ({
    method,
    path: path === "/" ? "" : fillPath(path, () => world),
    bodies: sampleBodies[`${method} ${path}`]?.(world) ?? [],
  }));

async function askTurn(
  instance: Instance,
  agent: Agent,
  { from, to, world }: { from: number; to: number; world: World },
): Promise<{ statuses: number[]; problems: string[] }> {
  const [targets, about] = [targetsOf(world), { authorization: basic(member), ids: idsOf(world) }];
  const statuses: number[] = [];
  const problems: string[] = [];
  const runner = async (first: number): Promise<void> => {
    for (let index = first; index < to; index += runners) {
      const request = randomOvirtRequest(targets, new Random(Math.imul(seed + index, 2654435761)), about);
      const answer = await send(instance.url, agent, request).catch((error: Error) => {
        return { status: 599, type: "", text: error.message };
      });
      statuses.push(answer.status);
      const problem = problemOf(request, answer);
      const shown = `request ${index}: ${request.method} ${request.path.slice(0, 300)} ${JSON.stringify(request.headers)} ${request.body?.subarray(0, 600)}`;
      if (problem) problems.push(`${problem}: ${shown} → ${answer.status} ${answer.text.slice(0, 300)}`);
    }
  };
  await Promise.all(Array.from({ length: runners }, (_, at) => runner(from + at)));
  return { statuses, problems };
}

it(`answers ${count} random requests, none with 5xx, none too late, each in its own form (seed ${seed})`, {
  timeout: 120_000 * patience + count * 60,
}, async () => {
  await using instance = await startEngine({ config: { log_level: "warn" } });
  const agent = new Agent({ keepAlive: true, maxSockets: runners });
  const seen = new Map<number, number>();
  const problems: string[] = [];
  for (let from = 0; from < count && problems.length < 20; from += turn) {
    await forgetProject(instance, projects.a);
    const world = await makeWorld(instance, projects.a, member);
    await beatImageServer(instance);
    const found = await askTurn(instance, agent, { from, to: Math.min(count, from + turn), world });
    for (const status of found.statuses) seen.set(status, (seen.get(status) ?? 0) + 1);
    problems.push(...found.problems);
  }
  agent.destroy();
  const summary = [...seen].sort(([a], [b]) => a - b).map(([status, times]) => `${times} × ${status}`);
  process.stdout.write(`seed ${seed}, ${count} requests over ${ovirtRoutes.length} routes: ${summary.join(", ")}\n`);
  expect(problems, instance.logs()).toEqual([]);
  for (const status of [200, 400, 401, 404, 409, 415]) {
    expect(seen.get(status), `answers with ${status}`).toBeGreaterThan(0);
  }
});
