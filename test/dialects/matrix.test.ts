import { createHash } from "node:crypto";
import type { Principal, Role } from "@tephra/control";
import { expect, it } from "vitest";
import { opsRoutes, v3Routes } from "../../apps/api/src/app.ts";
import { isPublic, may, type Rule } from "../../apps/api/src/http/policy.ts";
import { openEventReader } from "../kit/events.ts";
import type { Instance, Reply } from "../kit/instance.ts";
import { fingerprint, startApiOnly } from "./api-only.ts";
import { emptyWorld, fillPath, makeWorld, resetServices, sampleBodies, type World } from "./matrix-world.ts";

const a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/** Has nothing but an observer. */
const c = "cccccccccccccccccccccccccccccccc";
const nobody = "dddddddddddddddddddddddddddddddd";

interface Identity {
  name: string;
  token: string | null;
  principal: Principal | null;
}

const identity = (name: string, projectId: string, role: Role): Identity => ({
  name,
  token: name.replaceAll(" ", "-"),
  principal: { userId: `user-of-${name}`, projectId, roles: [role], isAdmin: role === "admin", requestId: "req" },
});

const [reader, member, admin, stranger, observer] = [
  identity("reader of A", a, "reader"),
  identity("member of A", a, "member"),
  identity("admin of A", a, "admin"),
  identity("member of B", b, "member"),
  identity("observer of C", c, "observer"),
];
const identities: readonly Identity[] = [
  { name: "anonymous", token: null, principal: null },
  { name: "bad token", token: "of-nobody", principal: null },
  reader,
  member,
  admin,
  stranger,
  observer,
];

const config = {
  auth: {
    mode: "static",
    tokens: [reader, member, admin, stranger, observer].map(({ token, principal }) => ({
      sha256: createHash("sha256").update(String(token)).digest("hex"),
      user_id: principal?.userId,
      project_id: principal?.projectId,
      roles: principal?.roles,
    })),
  },
  quotas: { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1, groups: -1 },
  // Nothing that a cell has asked for is given up, or begun, while a later one looks for changes.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

interface Target {
  name: string;
  method: string;
  path: string;
  /** The only key of the body of an action. */
  action: string | null;
  rule: Rule;
  dialect: "cinder" | "ops";
  takesBody: boolean;
}

/** Everything that can be asked for, from the tables that the service is made of. */
const routed: readonly Target[] = [
  ...v3Routes.flatMap((route): Target[] => {
    const [method, path] = route;
    const common = { path, dialect: "cinder" } as const;
    if (method !== "ACTION") {
      const takesBody = route[3].body !== undefined;
      return [{ ...common, name: `${method} ${path}`, method, action: null, rule: route[2], takesBody }];
    }
    return Object.entries(route[2]).map(([action, [rule]]) => {
      return { ...common, name: `POST ${path} ${action}`, method: "POST", action, rule, takesBody: true };
    });
  }),
  ...opsRoutes.map(([method, path, rule]): Target => {
    return {
      name: `${method} ${path}`,
      method,
      path,
      action: null,
      rule,
      dialect: "ops",
      takesBody: method === "POST" || method === "PUT",
    };
  }),
];

/** What is no row of a table: the board of the queues, and what clients ask before they have a token. */
const others: readonly Target[] = (
  [
    ["/ops/queues", "ops:queues"],
    ["/ops/queues/api/queues", "ops:queues"],
    ["/", "public"],
    ["/healthcheck", "public"],
  ] as const
).map(([path, rule]) => {
  return { name: `GET ${path}`, method: "GET", path, action: null, rule, dialect: "ops", takesBody: false };
});

/** Whose rule says more than the role: what belongs to a project that the path names. */
const isOfProject = (target: Target): boolean => target.path.startsWith("/os-quota-sets/");

interface Asked {
  /** The part of the path for the project; null: none. */
  urlProject: string | null;
  world: World;
  /** Whose quota the path names. */
  named: string;
  query?: string;
}

async function ask(instance: Instance, target: Target, who: Identity, asked: Asked): Promise<Reply> {
  const { world, urlProject, named, query = "" } = asked;
  const project = urlProject === null ? "" : `/${urlProject}`;
  const path = (target.dialect === "ops" ? "" : `/v3${project}`) + fillPath(target.path, world, named) + query;
  const samples = sampleBodies(world, instance.dataDir);
  if (target.takesBody && !(target.name in samples)) throw new Error(`${target.name} has no sample body`);
  const sample = target.takesBody ? samples[target.name] : undefined;
  const body = target.action === null ? sample : { [target.action]: sample };
  const token: Record<string, string> = who.token === null ? {} : { "x-auth-token": who.token };
  const headers = { ...token, "openstack-api-version": "volume 3.71" };
  // It has no end: what a reader is told at first is all that there is to compare.
  if (target.path === "/ops/events") return askEvents(instance.url + path, headers);
  return instance.request(target.method, path, body, headers);
}

async function askEvents(url: string, headers: Record<string, string>): Promise<Reply> {
  await using events = await openEventReader(url, { headers });
  if (events.status === 200) await events.wait(({ event }) => event === "ready", "the reader is told");
  const text = events.status === 200 ? events.seen.map(({ event }) => event).join(" ") : events.text;
  return { status: events.status, headers: events.headers, body: undefined, text };
}

/** An answer without what differs from one request, or one id, to the next. */
const unnamed = (reply: Reply, world: World): string => {
  const ids = [...Object.values(world), a, b, nobody];
  const text = reply.text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z?/g, "<time>").replace(/"next":"\d+-\d+"/, "<cursor>");
  const known = ids.reduce((left, id) => left.replaceAll(id, "<id>"), text);
  // What a request has made has an id of its own.
  return `${reply.status} ${known.replace(/[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g, "<id>")}`;
};

const fingerprintOf = async (instance: Instance): Promise<string> => {
  const rows = await instance.sql(
    "SELECT count(*)::int AS n, (SELECT count(*)::int FROM disabled_services) AS off FROM messages",
  );
  return JSON.stringify([await fingerprint(instance), rows]);
};

/** Who takes an offered volume is a stranger: the id and the key are what gives the right, and a wrong key is said to be wrong. */
const isForStrangers = (target: Target): boolean => target.path.endsWith("/accept");

/** What is wrong with how a stranger is answered; empty when nothing is. */
async function strangerLeaks(instance: Instance, target: Target, found: World): Promise<string[]> {
  const leaks: string[] = [];
  const none = emptyWorld();
  const world = isForStrangers(target) ? { ...found, authKey: none.authKey } : found;
  const own = await ask(instance, target, stranger, { urlProject: b, world, named: a });
  const unknown = await ask(instance, target, stranger, { urlProject: b, world: none, named: nobody });
  if (!isForStrangers(target) && unnamed(own, world) !== unnamed(unknown, none)) {
    leaks.push(`A's is told from an unknown one: ${unnamed(own, world)} / ${unnamed(unknown, none)}`);
  }
  const allowed =
    stranger.principal !== null && may(stranger.principal, target.rule, isOfProject(target) ? a : undefined);
  if (!allowed && ![403, 404].includes(own.status)) leaks.push(`${own.status} instead of 403`);
  const elsewhere = await ask(instance, target, stranger, { urlProject: a, world, named: a });
  if (target.dialect === "cinder" && elsewhere.status !== 400) leaks.push(`A's URL: ${elsewhere.status}`);
  const bare = await ask(instance, target, stranger, { urlProject: null, world, named: a });
  const replies = [own, elsewhere, bare];
  if (target.method === "GET") {
    for (const query of [`?all_tenants=1&project_id=${a}`, "?all_tenants=1", `?project_id=${a}&tenant_id=${a}`]) {
      replies.push(await ask(instance, target, stranger, { urlProject: b, world, named: a, query }));
    }
  }
  const ofA = [world.secret, "user-of-member of A"];
  for (const { text } of replies) {
    if (ofA.some((word) => text.includes(word))) leaks.push(`reads A's: ${text.slice(0, 200)}`);
  }
  return leaks;
}

/** What is wrong with one cell; empty when nothing is. */
async function leaksOf(instance: Instance, target: Target, who: Identity, world: World): Promise<string[]> {
  if (isPublic(target.rule)) {
    const { status, text } = await ask(instance, target, who, { urlProject: a, world, named: a });
    return status < 400 && !text.includes(world.secret) ? [] : [`public, but ${status}`];
  }
  if (who.principal === null) {
    const { status, text } = await ask(instance, target, who, { urlProject: a, world, named: a });
    return status === 401 && !text.includes(world.secret) ? [] : [`${status} instead of 401`];
  }
  const project = isOfProject(target) ? a : undefined;
  const allowed = may(who.principal, target.rule, project);
  if (who === stranger) return strangerLeaks(instance, target, world);
  const { status, text } = await ask(instance, target, who, { urlProject: who.principal.projectId, world, named: a });
  if (!allowed) return status === 403 ? [] : [`${status} instead of 403: ${text.slice(0, 200)}`];
  // That nobody is let in by name is what there is to be told of a type that everybody may use.
  const told = text.includes("not available for public volume types") || text.includes("has no extra specs with key");
  return ([401, 403, 404].includes(status) && !told) || status >= 500
    ? [`allowed, but ${status}: ${text.slice(0, 200)}`]
    : [];
}

it("lets every identity do on every route what the policy says, and nothing more", { timeout: 600_000 }, async () => {
  await using instance = await startApiOnly({ config });
  const leaks: string[] = [];
  let cells = 0;
  const targets = [...routed, ...others];
  /** Null once something may have changed it: what comes next gets a new one. */
  let untouched: World | null = null;
  let known = "";
  const renew = async (): Promise<World> => {
    await resetServices(instance);
    untouched = await makeWorld(instance, a, String(member.token));
    known = await fingerprintOf(instance);
    return untouched;
  };
  for (const target of targets) {
    const allowedHere = ({ principal }: Identity): boolean => principal !== null && may(principal, target.rule);
    // Those first who must not change anything.
    const order = [...identities].sort(
      (x, y) => Number(allowedHere(x) && x !== stranger) - Number(allowedHere(y) && y !== stranger),
    );
    for (const who of order) {
      const mayChange = target.method !== "GET" && allowedHere(who);
      const world = untouched ?? (await renew());
      const before = known;
      const found = await leaksOf(instance, target, who, world);
      if (mayChange) untouched = null;
      else known = await fingerprintOf(instance);
      if (known !== before) found.push(`changes something: ${before} became ${known}`);
      leaks.push(...found.map((leak) => `${target.name}, ${who.name}: ${leak}`));
      cells += 1;
    }
  }
  process.stdout.write(
    `tenant matrix: ${targets.length} routes × ${identities.length} identities = ${cells} cells, ${leaks.length} leaks\n`,
  );
  expect(cells).toBe(targets.length * identities.length);
  expect(leaks).toEqual([]);
});

it("lets an observer read what every project has, and change nothing", async () => {
  const seen = observer.principal as Principal;
  const changing = routed.filter((target) => target.method !== "GET" && !isPublic(target.rule));
  const allowed = changing.filter(({ rule }) => may(seen, rule)).map(({ name }) => name);
  expect(allowed, "these only say what would become of backups").toEqual([
    "POST /ops/policies/simulate",
    "POST /ops/policies/:id/preview",
  ]);
  await using instance = await startApiOnly({ config });
  const world = await makeWorld(instance, a, String(member.token));
  const lists = ["volumes", "snapshots", "backups", "groups", "group_snapshots"].map(
    (name) => `/v3/${c}/${name}/detail?all_tenants=1`,
  );
  const ours = ["/ops/operations", "/ops/volumes", "/ops/instances", "/ops/audit"];
  const headers = { "x-auth-token": String(observer.token), "openstack-api-version": "volume 3.71" };
  for (const path of [...lists, ...ours]) {
    const { status, text } = await instance.request("GET", path, undefined, headers);
    expect(status, `${path}: ${text}`).toBe(200);
    const shown = [world.secret, a, world.volume].filter((word) => text.includes(word));
    expect(shown, path).not.toEqual([]);
  }
  const { body } = await instance.request("GET", "/ops/session", undefined, headers);
  expect(body.session.roles).toEqual(["observer"]);
  expect(body.session.may).toEqual(expect.arrayContaining(["ops:audit", "ops:workers", "ops:notifications"]));
  const changes = new Set<Rule>(changing.map(({ rule }) => rule).filter((rule) => rule !== "ops:policy:get"));
  expect(body.session.may.filter((rule: Rule) => changes.has(rule))).toEqual([]);
});
