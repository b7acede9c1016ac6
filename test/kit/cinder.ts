import { mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { provideCinder } from "../../scripts/cinder-package.ts";
import { systemPython } from "../../scripts/debian-packages.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import type { IdentityServer } from "./keystone.ts";
import { waitFor } from "./wait-for.ts";

// biome-ignore lint/suspicious/noExplicitAny: tests reach into bodies whose shape is what they check
type Body = any;

/** One user's calls, in the project of the token. */
export interface CinderUser {
  readonly token: string;
  readonly projectId: string;
  call(method: string, path: string, body?: unknown): Promise<{ status: number; body: Body }>;
  /** As call, of which a refusal is an error. */
  must(method: string, path: string, body?: unknown): Promise<Body>;
  /** A new volume of so many GiB, available. */
  createVolume(volume: { size?: number } & Record<string, unknown>): Promise<Body>;
  /** The volume once it has that status. */
  volumeIn(id: string, status: string): Promise<Body>;
  /** All volumes that the user sees; of all projects where he may. */
  volumes(): Promise<Body[]>;
}

/** A driver of Cinder's: its section of cinder.conf, and what its programs need. */
export interface CinderStorage {
  section: string;
  environment: Record<string, string>;
  /** In front of the command. */
  prefix?: readonly string[];
}

/** A real Cinder, whose volumes are files unless it was given a storage. */
export interface CinderServer extends AsyncDisposable {
  readonly url: string;
  readonly volumesDir: string;
  readonly program: Program;
  /** The file of a volume. */
  file(volumeId: string): string;
  as(user: { name: string; password: string; project: string }): Promise<CinderUser>;
  /** How long a clone takes, also one that is being made. */
  cloneFor(seconds: number): void;
}

/** Starts a Cinder beside a Keystone, which gets to know it; `await using` stops and removes it. */
export async function startCinder(identity: IdentityServer, storage?: CinderStorage): Promise<CinderServer> {
  const environment = await provideCinder((line) => process.stderr.write(`${line}\n`));
  await using stack = new AsyncDisposableStack();
  const dir = realpathSync(mkdtempSync(join(tmpdir(), "tephra-cinder-")));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const port = await freePort();
  const volumesDir = join(dir, "volumes");
  const { url: keystone, user, password, project } = identity;
  const settings = { dir, port, keystone, user, password, project, volumes: volumesDir, gib_shift: 30 };
  const path = process.env["PATH"];
  const [command = systemPython, ...before] = [...(storage?.prefix ?? []), systemPython];
  const program = await spawnProgram({
    name: "cinder",
    command,
    args: [
      ...before,
      "-W",
      "ignore",
      join(root, "test/kit/cinder-server.py"),
      JSON.stringify({ ...settings, backend: storage?.section }),
    ],
    env: { PATH: path, HOME: dir, no_proxy: "*", PYTHONDONTWRITEBYTECODE: "1", ...joined(environment, storage) },
    cwd: dir,
  });
  stack.defer(async () => void (await program.stop({ signal: "SIGKILL" })));
  await waitFor(() => !program.running() || /^ready$/m.test(program.tail()), {
    what: "Cinder is ready",
    timeoutMs: 120_000,
    context: () => program.tail(),
  });
  if (!program.running()) throw new Error(`Cinder did not start:\n${program.tail()}`);
  const url = `http://127.0.0.1:${port}`;
  await identity.addService({ type: "block-storage", name: "cinder", url: `${url}/v3/%(project_id)s` });
  const owned = stack.move();
  return {
    url,
    volumesDir,
    program,
    file: (volumeId) => join(volumesDir, `volume-${volumeId}`),
    as: async (who) => userOf(url, await identity.tokenOf(who), await identity.projectId(who.project)),
    cloneFor: (seconds) => writeFileSync(join(dir, "clone-seconds"), String(seconds)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Python's modules and the libraries of both. */
function joined(environment: Record<string, string>, storage: CinderStorage | undefined): Record<string, string> {
  const more = storage?.environment ?? {};
  const lists = ["PYTHONPATH", "LD_LIBRARY_PATH"].flatMap((name) => {
    const parts = [environment[name], more[name]].filter((part) => part !== undefined && part !== "");
    return parts.length === 0 ? [] : [[name, parts.join(":")]];
  });
  return { ...environment, ...more, ...Object.fromEntries(lists) };
}

function userOf(url: string, token: string, projectId: string): CinderUser {
  const call: CinderUser["call"] = async (method, path, body) => {
    const reply = await fetch(`${url}/v3/${projectId}${path}`, {
      method,
      headers: { "x-auth-token": token, "content-type": "application/json", "openstack-api-version": "volume 3.66" },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await reply.text();
    return { status: reply.status, body: text === "" ? null : JSON.parse(text) };
  };
  const must: CinderUser["must"] = async (method, path, body) => {
    const { status, body: answer } = await call(method, path, body);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(answer)}`);
    return answer;
  };
  const volumeIn: CinderUser["volumeIn"] = (id, status) =>
    waitFor(
      async () => {
        const { volume } = await must("GET", `/volumes/${id}`);
        return volume.status === status && volume;
      },
      { what: `volume ${id} is ${status}`, timeoutMs: 60_000 },
    );
  return {
    token,
    projectId,
    call,
    must,
    volumeIn,
    createVolume: async (volume) => {
      const made = await must("POST", "/volumes", { volume: { size: 1, ...volume } });
      return volumeIn(made.volume.id, "available");
    },
    volumes: async () => (await must("GET", "/volumes/detail?all_tenants=1&limit=1000")).volumes,
  };
}
