import { closeSync, openSync, readSync, statSync, writeSync } from "node:fs";
import { expect } from "vitest";
import { randomBytesOf } from "../kit/bytes.ts";
import { type CinderServer, type CinderStorage, type CinderUser, startCinder } from "../kit/cinder.ts";
import { type Instance, type InstanceOptions, type Reply, startInstance } from "../kit/instance.ts";
import { type IdentityServer, startIdentity } from "../kit/keystone.ts";

const demo = { name: "demo", password: "pw-demo", project: "alpha", role: "member" };
const stranger = { name: "sven", password: "pw-sven", project: "beta", role: "member" };
const service = { name: "tephra", password: "pw-tephra", project: "tephra", role: "admin" };

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

/** Requests of a user to Tephra, in his project. */
export const asking =
  (instance: Instance, { token, projectId }: CinderUser) =>
  (method: string, path: string, body?: unknown): Promise<Reply> =>
    instance.request(method, `/v3/${projectId}${path}`, body, { "x-auth-token": token });

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
