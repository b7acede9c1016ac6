import { Agent, request } from "node:http";
import { type House, openHouse, project } from "../test/kit/house.ts";
import { cpuSeconds, inParallel, liftQuotas, postgresSeconds, uuidOf } from "./house-work.ts";
import { type Measurement, measured, quantile, type Say } from "./measurement.ts";

const backupsInDatabase = [1_000, 100_000] as const;
const rounds = 3;
const connectionCounts = [1, 8, 64];
const postsPerRound = 192;
const pollsPerRound = 960;
const listsPerRound = 100;

/** What a number of requests took. */
export interface Load {
  perSecond: number;
  /** Of each request, in milliseconds. */
  latencies: number[];
}

/**
 * POST /backups accepted and GET /backups/{id} answered per second, with 1,000 backups in the database; GET /backups/detail?limit=50 with
 * 1,000 and with 100,000. Of each, how long half of the requests and 99 of 100 took at most.
 */
export async function measureRequests(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({
    workers: 1,
    config: { tasks: { unplaced_timeout_ms: 3_600_000 } },
    say,
  });
  await liftQuotas(house);
  const [few, many] = backupsInDatabase;
  await addBackups(house, { from: 0, to: few });
  // Accepting is what is measured: nobody works on it meanwhile.
  await Promise.all(house.workers.map((worker) => worker.stop()));
  const results = await measureLists(house, few, say);
  for (const connections of connectionCounts) results.push(...(await measureConnections(house, connections, say)));
  await addBackups(house, { from: few, to: many });
  return [...results, ...(await measureLists(house, many, say))];
}

async function measureConnections(house: House, connections: number, say: Say): Promise<Measurement[]> {
  say(`POST /backups and GET /backups/{id} over ${connections} connections`);
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const posts: Load[] = [];
  const polls: Load[] = [];
  const costs: { api: number; postgres: number }[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const volumes = await addVolumes(house, `${connections} ${round}`);
    const [api, postgres] = [cpuSeconds([house.api()]), await postgresSeconds(house)];
    posts.push(await loadOf(volumes, connections, (id) => postBackup(house, agent, id)));
    costs.push({
      api: ((cpuSeconds([house.api()]) - api) / postsPerRound) * 1000,
      postgres: (((await postgresSeconds(house)) - postgres) / postsPerRound) * 1000,
    });
    const ids = Array.from({ length: pollsPerRound }, (_, i) => backupId(i % backupsInDatabase[0]));
    polls.push(await loadOf(ids, connections, (id) => get(house, agent, `/backups/${id}`)));
  }
  agent.destroy();
  const at = `at ${connections} connection${connections === 1 ? "" : "s"}`;
  const costOf = (whose: string, values: number[]) =>
    measured(`POST /backups, ${at}: ${whose} processor time`, values, { unit: "ms" });
  return [
    ...reportOf(`POST /backups, ${at}`, posts),
    costOf(
      "the API's",
      costs.map((cost) => cost.api),
    ),
    costOf(
      "PostgreSQL's",
      costs.map((cost) => cost.postgres),
    ),
    ...reportOf(`GET /backups/{id}, ${at}`, polls),
  ];
}

async function measureLists(house: House, backups: number, say: Say): Promise<Measurement[]> {
  say(`GET /backups/detail?limit=50 with ${backups} backups`);
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const lists: Load[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const paths = Array.from({ length: listsPerRound }, () => "/backups/detail?limit=50");
    lists.push(await loadOf(paths, 1, (path) => get(house, agent, path)));
  }
  agent.destroy();
  return reportOf(`GET /backups/detail?limit=50, with ${backups} backups`, lists);
}

export async function loadOf<T>(
  items: readonly T[],
  connections: number,
  work: (item: T) => Promise<void>,
): Promise<Load> {
  const latencies: number[] = [];
  const started = performance.now();
  await inParallel(items, connections, async (item) => {
    const asked = performance.now();
    await work(item);
    latencies.push(performance.now() - asked);
  });
  return { perSecond: items.length / ((performance.now() - started) / 1000), latencies };
}

function reportOf(name: string, loads: readonly Load[]): Measurement[] {
  const quantiles = (share: number) => loads.map(({ latencies }) => quantile(latencies, share));
  return [
    measured(
      name,
      loads.map(({ perSecond }) => perSecond),
      { unit: "per s" },
    ),
    measured(`${name}: half within`, quantiles(0.5), { unit: "ms" }),
    measured(`${name}: 99 of 100 within`, quantiles(0.99), { unit: "ms" }),
  ];
}

const backupId = (i: number): string => uuidOf(`backup ${i}`);

async function addBackups(house: House, { from, to }: { from: number; to: number }): Promise<void> {
  const ids = Array.from({ length: to - from }, (_, i) => backupId(from + i));
  await house.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, name, status, size_gib, object_count, repository, data_timestamp)
     SELECT id, $2, 'admin', id, 'backup', 'available', 1, 1, 'main', now() FROM unnest($1::uuid[]) AS id`,
    [ids, project],
  );
}

async function addVolumes(house: House, round: string): Promise<string[]> {
  const ids = Array.from({ length: postsPerRound }, (_, i) => uuidOf(`volume ${round} ${i}`));
  await house.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     SELECT id, $2, 'admin', 'volume', 'available', 1, 1048576, 'files', 'nova' FROM unnest($1::uuid[]) AS id`,
    [ids, project],
  );
  return ids;
}

async function postBackup(house: House, agent: Agent, volumeId: string): Promise<void> {
  const body = JSON.stringify({ backup: { volume_id: volumeId } });
  await exchange(`${house.url}/v3/${project}/backups`, agent, { method: "POST", body, wanted: 202 });
}

async function get(house: House, agent: Agent, path: string): Promise<void> {
  await exchange(`${house.url}/v3/${project}${path}`, agent, { method: "GET", wanted: 200 });
}

/** With node:http, whose own cost beside the service's is the smallest. */
export function exchange(
  url: string,
  agent: Agent,
  { method, body, wanted, token }: { method: string; body?: string; wanted: number; token?: string },
): Promise<void> {
  const headers = {
    ...(body !== undefined && { "content-type": "application/json", "content-length": Buffer.byteLength(body) }),
    ...(token !== undefined && { "x-auth-token": token }),
  };
  return new Promise((done, fail) => {
    const outgoing = request(url, { agent, method, headers }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", fail);
      response.on("end", () => {
        if (response.statusCode === wanted) done();
        else fail(new Error(`${method} ${url}: ${response.statusCode} ${text}`));
      });
    });
    outgoing.on("error", fail);
    outgoing.end(body);
  });
}
