import { Agent, request } from "node:http";
import { type House, openHouse, project } from "../demo/house.ts";
import { inParallel, liftQuotas, uuidOf } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";

const backupsInDatabase = 1000;
const rounds = 3;
const connectionCounts = [1, 8];
const postsPerRound = 150;
const pollsPerRound = 1000;

/** POST /backups accepted and GET /backups/{id} answered per second, with 1,000 backups in the database. */
export async function measureRequests(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({
    workers: 1,
    config: { tasks: { unplaced_timeout_ms: 3_600_000 } },
    say,
  });
  await liftQuotas(house);
  await addBackups(house);
  // Accepting is what is measured: nobody works on it meanwhile.
  await Promise.all(house.workers.map((worker) => worker.stop()));
  const results: Measurement[] = [];
  for (const connections of connectionCounts) {
    say(`POST /backups and GET /backups/{id} over ${connections} connections`);
    const agent = new Agent({ keepAlive: true, maxSockets: connections });
    const posts: number[] = [];
    const polls: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const volumes = await addVolumes(house, `${connections} ${round}`);
      posts.push(await perSecond(volumes, connections, (id) => postBackup(house, agent, id)));
      const ids = Array.from({ length: pollsPerRound }, (_, i) => backupId(i % backupsInDatabase));
      polls.push(await perSecond(ids, connections, (id) => pollBackup(house, agent, id)));
    }
    agent.destroy();
    const at = `at ${connections} connection${connections === 1 ? "" : "s"}`;
    results.push(measured(`POST /backups accepted, ${at}`, posts, { unit: "per s" }));
    results.push(measured(`GET /backups/{id}, ${at}`, polls, { unit: "per s" }));
  }
  return results;
}

async function perSecond<T>(
  items: readonly T[],
  connections: number,
  work: (item: T) => Promise<void>,
): Promise<number> {
  const started = performance.now();
  await inParallel(items, connections, work);
  return items.length / ((performance.now() - started) / 1000);
}

const backupId = (i: number): string => uuidOf(`backup ${i}`);

async function addBackups(house: House): Promise<void> {
  const ids = Array.from({ length: backupsInDatabase }, (_, i) => backupId(i));
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
  await exchange(house, agent, { method: "POST", path: `/v3/${project}/backups`, body, wanted: 202 });
}

async function pollBackup(house: House, agent: Agent, id: string): Promise<void> {
  await exchange(house, agent, { method: "GET", path: `/v3/${project}/backups/${id}`, wanted: 200 });
}

/** With node:http, whose own cost beside the service's is the smallest. */
function exchange(
  house: House,
  agent: Agent,
  { method, path, body, wanted }: { method: string; path: string; body?: string; wanted: number },
): Promise<void> {
  const headers =
    body === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  return new Promise((done, fail) => {
    const outgoing = request(house.url + path, { agent, method, headers }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", fail);
      response.on("end", () => {
        if (response.statusCode === wanted) done();
        else fail(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
      });
    });
    outgoing.on("error", fail);
    outgoing.end(body);
  });
}
