import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { systemPython } from "../../scripts/debian-packages.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { unpackSwift } from "../../scripts/swift-package.ts";
import { type SwiftServer, startSwift } from "./swift.ts";
import { waitFor } from "./wait-for.ts";

/** A real Keystone, with admin access. */
export interface IdentityServer extends AsyncDisposable {
  readonly url: string;
  readonly user: string;
  readonly password: string;
  readonly project: string;
  readonly region: string;
  readonly program: Program;
  /** The id of the project of that name, created if necessary. */
  projectId(name: string): Promise<string>;
  /** Creates a user with one role in one project, and the project if necessary; sets the password of an existing user. Returns its id. */
  addUser(user: { name: string; password: string; project: string; role: string }): Promise<string>;
  /** A token of that user for that project; without a project, an unscoped one. */
  tokenOf(user: { name: string; password: string; project?: string }): Promise<string>;
  revoke(token: string): Promise<void>;
  /** Adds a service to the catalog, in a region of its own if wanted; `%(project_id)s` in its URL is replaced by the token's project. The service need not exist yet. */
  addService(service: { type: string; name: string; url: string; region?: string }): Promise<void>;
}

/** A real Keystone with a real Swift that accepts its tokens. */
export interface KeystoneServer extends IdentityServer {
  readonly swift: SwiftServer;
}

/** Starts both; `await using` stops and removes them. */
export async function startKeystone(options: { tokenLifeSeconds: number }): Promise<KeystoneServer> {
  await using stack = new AsyncDisposableStack();
  const swiftPort = await freePort();
  const objectStore = `http://127.0.0.1:${swiftPort}/v1/AUTH_%(project_id)s`;
  const identity = stack.use(await startIdentity(options));
  await identity.addService({ type: "object-store", name: "swift", url: objectStore });
  const swift = stack.use(await startSwift({ port: swiftPort, identity }));
  const owned = stack.move();
  return { ...identity, swift, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Starts only a Keystone; `await using` stops and removes it. */
export async function startIdentity(options: { tokenLifeSeconds: number }): Promise<IdentityServer> {
  const environment = await unpackSwift((line) => process.stderr.write(`${line}\n`));
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-keystone-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const port = await freePort();
  const access = { user: "admin", password: "pass word+1", project: "admin", region: "north" };
  const settings = {
    dir,
    port,
    password: access.password,
    region: access.region,
    token_life: options.tokenLifeSeconds,
  };
  const program = await spawnProgram({
    name: "keystone",
    command: systemPython,
    args: ["-W", "ignore", join(root, "test/kit/keystone-server.py"), JSON.stringify(settings)],
    env: { PATH: process.env["PATH"], HOME: dir, ...environment },
    cwd: dir,
  });
  stack.defer(async () => void (await program.stop({ signal: "SIGKILL" })));
  await waitFor(() => !program.running() || /^ready$/m.test(program.tail()), {
    what: "Keystone is ready",
    timeoutMs: 90_000,
    context: () => program.tail(),
  });
  if (!program.running()) throw new Error(`Keystone did not start:\n${program.tail()}`);
  const url = `http://127.0.0.1:${port}`;
  const owned = stack.move();
  return {
    ...access,
    ...administrate(url, access, options.tokenLifeSeconds),
    url,
    program,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

const domain = { id: "default" };

/** Administration through Keystone's own API. */
function administrate(
  url: string,
  admin: { user: string; password: string; project: string; region: string },
  tokenLifeSeconds: number,
): Pick<IdentityServer, "projectId" | "addUser" | "tokenOf" | "revoke" | "addService"> {
  let held: { token: Promise<string>; untilMs: number } | null = null;
  /** Most of a call's cost is the login, so one is reused for a third of a token's lifetime. */
  const adminToken = (): Promise<string> => {
    if (held === null || performance.now() > held.untilMs) {
      const untilMs = performance.now() + (tokenLifeSeconds * 1000) / 3;
      held = { token: tokenOf({ ...admin, name: admin.user }), untilMs };
    }
    return held.token;
  };
  const call = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
    const token = await adminToken();
    const reply = await fetch(`${url}/v3/${path}`, {
      method,
      headers: { "content-type": "application/json", "x-auth-token": token },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await reply.text();
    if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${text}`);
    return text === "" ? {} : JSON.parse(text);
  };
  const ensure = async (kind: "project" | "role" | "user", name: string, more: object = {}): Promise<string> => {
    const found = (await call("GET", `${kind}s?name=${name}`))[`${kind}s`] as { id: string }[];
    const [first] = found;
    if (first) return first.id;
    const made = await call("POST", `${kind}s`, { [kind]: { name, ...more } });
    return (made[kind] as { id: string }).id;
  };
  const tokenOf: IdentityServer["tokenOf"] = async ({ name, password, project }) => {
    const identity = { methods: ["password"], password: { user: { name, password, domain } } };
    const scope = project === undefined ? {} : { scope: { project: { name: project, domain } } };
    const reply = await fetch(`${url}/v3/auth/tokens`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ auth: { identity, ...scope } }),
    });
    const token = reply.headers.get("x-subject-token");
    if (token === null) throw new Error(`no token for ${name}: ${reply.status} ${await reply.text()}`);
    return token;
  };
  return {
    projectId: (name) => ensure("project", name, { domain_id: domain.id }),
    addUser: async ({ name, password, project, role }) => {
      const user = await ensure("user", name, { password, domain_id: domain.id });
      await call("PATCH", `users/${user}`, { user: { password } });
      const place = `projects/${await ensure("project", project, { domain_id: domain.id })}/users/${user}`;
      await call("PUT", `${place}/roles/${await ensure("role", role)}`);
      return user;
    },
    tokenOf,
    revoke: async (token) => {
      const by = await adminToken();
      const reply = await fetch(`${url}/v3/auth/tokens`, {
        method: "DELETE",
        headers: { "x-auth-token": by, "x-subject-token": token },
      });
      if (!reply.ok) throw new Error(`revoking: ${reply.status} ${await reply.text()}`);
    },
    addService: async ({ type, name, url: serviceUrl, region = admin.region }) => {
      const { regions } = (await call("GET", "regions")) as { regions: { id: string }[] };
      if (regions.every(({ id }) => id !== region)) await call("POST", "regions", { region: { id: region } });
      const { service } = (await call("POST", "services", { service: { type, name } })) as { service: { id: string } };
      const endpoint = { service_id: service.id, interface: "public", url: serviceUrl, region_id: region };
      await call("POST", "endpoints", { endpoint });
    },
  };
}
