import { randomBytes } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from "node:fs";
import { expect } from "vitest";
import { randomBytesOf } from "../kit/bytes.ts";
import { type CinderServer, type CinderStorage, type CinderUser, startCinder } from "../kit/cinder.ts";
import { type Instance, type InstanceOptions, type Reply, startInstance } from "../kit/instance.ts";
import { type IdentityServer, startIdentity } from "../kit/keystone.ts";
import { randomFrom } from "../kit/random.ts";
import { patience, waitFor } from "../kit/wait-for.ts";

const demo = { name: "demo", password: "pw-demo", project: "alpha", role: "member" };
const stranger = { name: "sven", password: "pw-sven", project: "beta", role: "member" };
const service = { name: "tephra", password: "pw-tephra", project: "tephra", role: "admin" };

/** Of an installation whose workers are lost: soon noticed, also on a busy machine. */
export const briskConfig = {
  worker: { lease_ms: 3_000 * patience, heartbeat_ms: 500 },
  tasks: { reconcile_ms: 300, backoff_ms: 100 },
  quotas: { backups: -1, backup_gigabytes: -1 },
};

/** A Keystone and a Cinder with two users, and the user of the service. */
export interface BesideWorld extends AsyncDisposable {
  readonly identity: IdentityServer;
  readonly cinder: CinderServer;
  readonly user: CinderUser;
  readonly stranger: CinderUser;
  readonly service: CinderUser;
  /** An installation beside that Cinder. */
  start(options?: InstanceOptions & { backend?: object }): Promise<Instance>;
}

/** `storage`: of the Cinder, and with what settings of the backend each installation is started. */
export async function startWorld(
  storage?: CinderStorage & { backend: object; environment: Record<string, string> },
): Promise<BesideWorld> {
  await using stack = new AsyncDisposableStack();
  const identity = stack.use(await startIdentity({ tokenLifeSeconds: 7_200 }));
  for (const user of [demo, stranger, service]) await identity.addUser(user);
  const cinder = stack.use(await startCinder(identity, storage));
  const [user, other, own] = [await cinder.as(demo), await cinder.as(stranger), await cinder.as(service)];
  const start: BesideWorld["start"] = ({ backend = {}, config = {}, env = {}, ...options } = {}) =>
    startInstance({
      ...options,
      env: { ...storage?.environment, ...env },
      config: {
        auth: {
          mode: "keystone",
          keystone: { url: identity.url, username: service.name, password: service.password, project: service.project },
        },
        volume_backends: [
          {
            name: "cinder",
            driver: "cinder",
            interface: "public",
            ...(storage?.backend ?? { local_roots: [cinder.volumesDir] }),
            ...backend,
          },
        ],
        ...config,
      },
    });
  const owned = stack.move();
  return {
    identity,
    cinder,
    user,
    stranger: other,
    service: own,
    start,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** In front of a worker's command: it takes itself for a worker on another host. */
export const onHost = (name: string): string[] => [
  ...["unshare", ...(process.getuid?.() === 0 ? [] : ["-r"]), "--uts"],
  ...["sh", "-c", 'hostname "$0" && exec "$@"', name],
];

/** The id of that program, started by a process; null when there is none. */
export function childOf(parent: number, program: string): number | null {
  for (const entry of readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name))) {
    try {
      const [, name, of] = /^[0-9]+ \((.*)\) \S+ ([0-9]+)/.exec(readFileSync(`/proc/${entry}/stat`, "utf8")) ?? [];
      if (name === program && Number(of) === parent) return Number(entry);
    } catch {
      // It has ended meanwhile.
    }
  }
  return null;
}

/** Requests of a user to Tephra, in his project. */
export const asking =
  (instance: Instance, { token, projectId }: CinderUser) =>
  (method: string, path: string, body?: unknown): Promise<Reply> =>
    instance.request(method, `/v3/${projectId}${path}`, body, { "x-auth-token": token });

/** Has Cinder take a snapshot. @returns its id once it is available */
export async function snapshotOf(user: CinderUser, volumeId: string): Promise<string> {
  const { snapshot } = await user.must("POST", "/snapshots", { snapshot: { volume_id: volumeId, name: "s" } });
  const ready = async () => (await user.must("GET", `/snapshots/${snapshot.id}`)).snapshot.status === "available";
  await waitFor(ready, { what: "the snapshot is there", timeoutMs: 30_000 });
  return snapshot.id;
}

/** Attaches a volume as to a machine: it is in use. @returns the id of the attachment */
export async function attachToGuest(user: CinderUser, volumeId: string, connector: object = {}): Promise<string> {
  const { attachment } = await user.must("POST", "/attachments", {
    attachment: { volume_uuid: volumeId, connector: { host: "guest", ...connector } },
  });
  await user.must("POST", `/attachments/${attachment.id}/action`, { "os-complete": {} });
  return attachment.id;
}

/** What was attached is let go. */
export async function detached(user: CinderUser, volumeId: string, attachmentId: string): Promise<void> {
  await user.must("DELETE", `/attachments/${attachmentId}`);
  await user.volumeIn(volumeId, "available");
}

/** Accepts a backup and returns its id. */
export async function accept(ask: ReturnType<typeof asking>, backup: object): Promise<string> {
  const reply = await ask("POST", "/backups", { backup });
  expect(reply.status, reply.text).toBe(202);
  return reply.body.backup.id;
}

/** The backup once it has ended; with `status` it must have ended so. */
export async function ended(instance: Instance, ask: ReturnType<typeof asking>, id: string, status = "available") {
  const backup = await instance.waitFor(
    async () => {
      const { body } = await ask("GET", `/backups/${id}`);
      return /^(?:available|error)/.test(body.backup.status) && body.backup;
    },
    { what: `backup ${id} has ended`, timeoutMs: 60_000 },
  );
  expect(backup.status, backup.fail_reason).toBe(status);
  return backup;
}

/** No task is left, clean-ups included, and no operation is live. */
export async function atRest(instance: Instance): Promise<void> {
  await instance.waitFor(
    async () => {
      const [row] = await instance.sql(
        `SELECT (SELECT count(*) FROM tasks WHERE state IN ('ready', 'dispatched', 'running', 'blocked'))
           + (SELECT count(*) FROM operations WHERE state IN ('queued', 'running')) AS left`,
      );
      return Number(row.left) === 0;
    },
    { what: "nothing is left to do", timeoutMs: 60_000 },
  );
}

/** Backs a volume up. @returns the backup's id once nothing is left to do */
export async function backedUp(
  instance: Instance,
  ask: ReturnType<typeof asking>,
  volumeId: string,
  more: object = {},
): Promise<string> {
  const id = await accept(ask, { volume_id: volumeId, ...more });
  await ended(instance, ask, id);
  await atRest(instance);
  return id;
}

/** Accepts a restore, to a new volume without an id. @returns the id of the target */
export async function restoreTo(
  ask: ReturnType<typeof asking>,
  backup: string,
  volumeId: string | null,
): Promise<string> {
  const reply = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: volumeId } });
  expect(reply.status, reply.text).toBe(202);
  return reply.body.restore.volume_id;
}

/** Restores a backup. @returns the id of the target once it is available and nothing is left to do */
export async function restoredTo(
  { instance, ask, user }: { instance: Instance; ask: ReturnType<typeof asking>; user: CinderUser },
  backup: string,
  volumeId: string | null,
): Promise<string> {
  const target = await restoreTo(ask, backup, volumeId).catch((error: unknown) => {
    throw new Error(`${error}\n${instance.logs()}`, { cause: error });
  });
  await atRest(instance);
  const [row] = await instance.sql(
    "SELECT state, fail_reason FROM operations WHERE volume_id = $1 ORDER BY created_at DESC LIMIT 1",
    [target],
  );
  expect(row).toEqual({ state: "succeeded", fail_reason: null });
  await user.volumeIn(target, "available");
  return target;
}

/** How a kind of storage is reached beside Cinder and us. */
interface Kind {
  write(volumeId: string, offset: number, length: number, seed: string): unknown;
  /** @returns the path of a copy of what a volume holds */
  keep(volumeId: string, name: string): string | Promise<string>;
  isSame(volumeId: string, expected: string): boolean | Promise<boolean>;
}

/** So often, a volume is changed in random places, backed up, every fourth time completely, and restored over another one. */
export async function restoreManyTimes(
  mine: { instance: Instance; ask: ReturnType<typeof asking>; user: CinderUser },
  { write, keep, isSame }: Kind,
  rounds: number,
): Promise<void> {
  const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
  process.stderr.write(`seed ${seed}\n`);
  const random = randomFrom(seed);
  const [{ id }, { id: target }] = [await mine.user.createVolume({}), await mine.user.createVolume({})];
  for (let round = 0; round < rounds; round += 1) {
    const length = 512 * (1 + random(4_096));
    for (let edits = 1 + random(3); edits > 0; edits -= 1) {
      await write(id, 512 * random((2 ** 30 - length) / 512), length, `${seed} ${round} ${edits}`);
    }
    const expected = await keep(id, "expected");
    const backup = await backedUp(mine.instance, mine.ask, id, { incremental: round % 4 > 0 });
    await restoredTo(mine, backup, target);
    expect(await isSame(target, expected), `round ${round} of seed ${seed}`).toBe(true);
  }
  process.stderr.write(`${rounds} restores, 0 wrong\n`);
}

/** Writes random bytes of that seed, as whoever has the volume would. */
export function write(file: string, offset: number, length: number, seed: string): void {
  const opened = openSync(file, "r+");
  try {
    writeSync(opened, randomBytesOf(seed, length), 0, length, offset);
  } finally {
    closeSync(opened);
  }
}

/** Whether two files have the same bytes in their first `length`, from `offset`. Compared piece by piece. */
export function same(one: string, other: string, length = statSync(one).size, offset = 0): boolean {
  const [a, b] = [openSync(one, "r"), openSync(other, "r")];
  const [left, right] = [Buffer.alloc(2 ** 22), Buffer.alloc(2 ** 22)];
  try {
    for (let at = offset; at < length; at += left.length) {
      const want = Math.min(left.length, length - at);
      if (readSync(a, left, 0, want, at) !== want || readSync(b, right, 0, want, at) !== want) return false;
      if (!left.subarray(0, want).equals(right.subarray(0, want))) return false;
    }
    return true;
  } finally {
    closeSync(a);
    closeSync(b);
  }
}
