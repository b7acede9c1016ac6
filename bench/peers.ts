import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { Agent } from "node:http";
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { poll } from "../scripts/poll.ts";
import { startCinder } from "../test/kit/cinder.ts";
import { openHouse } from "../test/kit/house.ts";
import { startIdentity } from "../test/kit/keystone.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { exchange, type Load, loadOf } from "./requests.ts";
import { noiseOf } from "./sparse-file.ts";

const user = { name: "demo", password: "pw-demo", project: "alpha", role: "member" };
const service = { name: "tephra", password: "pw-tephra", project: "tephra", role: "admin" };

const volumes = 96;
const volumeBytes = 1024 * 1024;
const listed = 1_000;
const rounds = 3;
const connections = 8;
const polls = 400;
const lists = 80;

/** Times what a Cinder does. */
const goals = { "POST /backups": 10, "GET /backups/{id}": 10, "GET /backups/detail?limit=50": 20 } as const;
type Kind = keyof typeof goals;

/** One of the two: what it is asked, and how everything that was asked of it ends. */
interface Peer extends AsyncDisposable {
  url: string;
  volumeIds: readonly string[];
  backupIds: readonly string[];
  /** All volumes can be backed up again. */
  settle(): Promise<void>;
}

/**
 * POST, show and list beside a real Cinder, in turn, with tokens of a real Keystone that both of them check. Tephra's workers do what is
 * asked of them meanwhile; of the Cinder only the API works, in one process with its database in a file: nobody takes its backups.
 */
export async function measurePeers(say: Say): Promise<Measurement[]> {
  await using stack = new AsyncDisposableStack();
  say("starting a Keystone, a Cinder and a Tephra");
  const identity = stack.use(await startIdentity({ tokenLifeSeconds: 7_200 }));
  for (const one of [user, service]) await identity.addUser(one);
  const cinder = stack.use(await startCinderThatAccepts(identity));
  const tephra = stack.use(await startTephra(identity, say));
  const token = await identity.tokenOf(user);
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  stack.defer(() => agent.destroy());
  const work: Record<Kind, (peer: Peer) => Promise<Load>> = {
    "POST /backups": (peer) =>
      loadOf(peer.volumeIds, connections, (volume_id) => {
        const body = JSON.stringify({ backup: { volume_id } });
        return exchange(`${peer.url}/backups`, agent, { method: "POST", body, wanted: 202, token });
      }),
    "GET /backups/{id}": (peer) => {
      const ids = Array.from({ length: polls }, (_, n) => peer.backupIds[n % peer.backupIds.length]);
      return loadOf(ids, connections, (id) =>
        exchange(`${peer.url}/backups/${id}`, agent, { method: "GET", wanted: 200, token }),
      );
    },
    "GET /backups/detail?limit=50": (peer) =>
      loadOf(Array.from({ length: lists }), connections, () =>
        exchange(`${peer.url}/backups/detail?limit=50`, agent, { method: "GET", wanted: 200, token }),
      ),
  };
  const results: Measurement[] = [];
  for (const [name, ask] of Object.entries(work) as [Kind, (peer: Peer) => Promise<Load>][]) {
    const [ours, theirs, ratios]: [number[], number[], number[]] = [[], [], []];
    for (let round = 1; round <= rounds; round += 1) {
      say(`${name}, round ${round} of ${rounds}`);
      const [one, other] = [(await ask(tephra)).perSecond, (await ask(cinder)).perSecond];
      ours.push(one);
      theirs.push(other);
      ratios.push(one / other);
      await Promise.all([tephra.settle(), cinder.settle()]);
    }
    const note = `at ${connections} connections, with Keystone`;
    results.push(
      measured(name, ours, { unit: "per s", note }),
      measured(`${name}, a Cinder`, theirs, { unit: "per s", note }),
      measured(`${name}, times a Cinder's`, ratios, { unit: "x", atLeast: goals[name], note }),
    );
  }
  return results;
}

type Identity = Awaited<ReturnType<typeof startIdentity>>;

async function startTephra(identity: Identity, say: Say): Promise<Peer> {
  await using stack = new AsyncDisposableStack();
  const keystone = { url: identity.url, username: service.name, password: service.password, project: service.project };
  const house = stack.use(await openHouse({ workers: 2, config: { auth: { mode: "keystone", keystone } }, say }));
  const project = await identity.projectId(user.project);
  const volumeIds = Array.from({ length: volumes }, () => randomUUID());
  await house.sql(
    "INSERT INTO quotas (project_id, volumes, gigabytes, backups, backup_gigabytes) VALUES ($1, -1, -1, -1, -1)",
    [project],
  );
  for (const id of volumeIds) await writeFile(house.volumeFile(id), noiseOf(id)(volumeBytes));
  await house.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     SELECT id, $2, 'u', 'volume', 'available', 1, $3, 'files', 'nova' FROM unnest($1::uuid[]) AS id`,
    [volumeIds, project, volumeBytes],
  );
  const backupIds = Array.from({ length: listed }, () => randomUUID());
  await house.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, name, status, size_gib, object_count, repository, data_timestamp)
     SELECT id, $2, 'u', id, 'backup', 'available', 1, 1, 'main', now() FROM unnest($1::uuid[]) AS id`,
    [backupIds, project],
  );
  const busy = "SELECT 1 FROM volumes WHERE status <> 'available' LIMIT 1";
  const owned = stack.move();
  return {
    ...{ url: `${house.url}/v3/${project}`, volumeIds, backupIds },
    settle: async () => {
      const done = async (): Promise<boolean> => (await house.sql(busy)).length === 0;
      await poll(done, { what: "all backups have ended", timeoutMs: 300_000, everyMs: 100 });
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function startCinderThatAccepts(identity: Identity): Promise<Peer> {
  await using stack = new AsyncDisposableStack();
  const cinder = stack.use(await startCinder(identity));
  const asUser = await cinder.as(user);
  const asAdmin = await cinder.as(service);
  const quota_set = { volumes: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 };
  await asAdmin.must("PUT", `/os-quota-sets/${asUser.projectId}`, { quota_set });
  const file = new DatabaseSync(join(dirname(cinder.volumesDir), "cinder.sqlite"), { timeout: 60_000 });
  stack.defer(() => file.close());
  /** Another row like that one. */
  const copy = (table: string, where: string, changed: Readonly<Record<string, string>>): void => {
    const columns = file
      .prepare(`SELECT name FROM pragma_table_info('${table}')`)
      .all()
      .map(({ name }) => String(name))
      .filter((name) => table !== "services" || name !== "id");
    const values = columns.map((name) => (Object.hasOwn(changed, name) ? `'${changed[name]}'` : name));
    file.exec(`INSERT INTO ${table} (${columns.join(", ")}) SELECT ${values.join(", ")} FROM ${table} WHERE ${where}`);
  };
  // A backup service that is alive, as far as the API can see.
  copy("services", "binary = 'cinder-volume'", {
    ...{ uuid: randomUUID(), host: "storage", binary: "cinder-backup", topic: "cinder-backup" },
    ...{ availability_zone: "nova", rpc_current_version: "2.3" },
  });
  const volume = await asUser.createVolume({ size: 1 });
  const volumeIds = Array.from({ length: volumes }, () => randomUUID());
  const first = (await asUser.must("POST", "/backups", { backup: { volume_id: volume.id } })).backup;
  const backupIds = Array.from({ length: listed }, () => randomUUID());
  const settle = async (): Promise<void> => file.exec("UPDATE volumes SET status = 'available'");
  await settle();
  file.exec("BEGIN");
  for (const id of volumeIds) copy("volumes", `id = '${volume.id}'`, { id });
  for (const id of backupIds) copy("backups", `id = '${first.id}'`, { id, status: "available" });
  file.exec("COMMIT");
  const owned = stack.move();
  return {
    ...{ url: `${cinder.url}/v3/${asUser.projectId}`, volumeIds, backupIds, settle },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
