import { createHash } from "node:crypto";
import { afterAll, beforeAll, expect, it } from "vitest";
import { may } from "../../../apps/api/src/http/policy.ts";
import type { Route } from "../../../apps/api/src/ovirt/call.ts";
import { ovirtRoutes } from "../../../apps/api/src/ovirt/routes.ts";
import type { Instance } from "../../kit/instance.ts";
import { isLong } from "../../kit/long.ts";
import { ask, basic, type EngineReply, hashOf, password, projects, startEngine } from "./engine.ts";
import {
  beatImageServer,
  emptyWorld,
  fillPath,
  forgetProject,
  makeWorld,
  partsOf,
  rest,
  sampleBodies,
  type World,
} from "./world.ts";

const cinderToken = "token-of-an-admin";
const member = "admin@internal";
const stranger = "stranger@internal";
const foreignAdmin = "owner@internal";

interface Caller {
  name: string;
  headers: () => Record<string, string>;
  /** Null: no user of this dialect. */
  role: "reader" | "member" | "admin" | null;
  project: string | null;
}

let engine: Instance;
let callers: Caller[];
beforeAll(async () => {
  const user = (name: string, project_id: string, role: string) => ({
    name,
    password_hash: hashOf(password),
    project_id,
    roles: [role],
  });
  const users = [
    user(member, projects.a, "member"),
    user("reader@internal", projects.a, "reader"),
    user("root@internal", projects.a, "admin"),
    user(stranger, projects.b, "member"),
    user(foreignAdmin, projects.b, "admin"),
  ];
  const tokens = [
    {
      sha256: createHash("sha256").update(cinderToken).digest("hex"),
      user_id: "admin",
      project_id: projects.a,
      roles: ["admin"],
    },
  ];
  // Nothing that a cell has asked for is given up while a later one looks for changes.
  const tasks = { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000 };
  engine = await startEngine({ config: { ovirt: { users }, auth: { mode: "static", tokens }, tasks } });
  callers = await makeCallers();
});
afterAll(() => engine?.[Symbol.asyncDispose]());

const form = { "content-type": "application/x-www-form-urlencoded" };

async function tokenOf(name: string): Promise<string> {
  const query = new URLSearchParams({ grant_type: "password", scope: "ovirt-app-api", username: name, password });
  const path = "/ovirt-engine/sso/oauth/token";
  const reply = await ask(engine, "POST", path, { as: null, xml: String(query), headers: form });
  return JSON.parse(reply.text).access_token;
}

async function makeCallers(): Promise<Caller[]> {
  const bearer = (token: string) => () => ({ authorization: `Bearer ${token}` });
  const byPassword = (name: string) => () => ({ authorization: basic(name) });
  // Always another, or further guesses would have to wait.
  let unknown = 0;
  const byUnknown = () => {
    unknown += 1;
    return { authorization: basic(`who-${unknown}@internal`) };
  };
  const [withdrawn, expired] = [await tokenOf(member), await tokenOf(member)];
  const body = new URLSearchParams({ scope: "ovirt-app-api", token: withdrawn });
  await ask(engine, "POST", "/ovirt-engine/services/sso-logout", { as: null, xml: String(body), headers: form });
  const digest = createHash("sha256").update(expired).digest("hex");
  await engine.sql("UPDATE ovirt_tokens SET expires_at = now() WHERE digest = $1", [digest]);
  const none = { role: null, project: null };
  const ofA = { project: projects.a };
  return [
    { name: "nobody", headers: () => ({}), ...none },
    { name: "an unknown user", headers: byUnknown, ...none },
    { name: "a token that was withdrawn", headers: bearer(withdrawn), ...none },
    { name: "a token that has expired", headers: bearer(expired), ...none },
    { name: "a token of Cinder's API", headers: () => ({ "x-auth-token": cinderToken }), ...none },
    { name: "the same as a bearer's", headers: bearer(cinderToken), ...none },
    { name: "member of B", headers: bearer(await tokenOf(stranger)), role: "member", project: projects.b },
    { name: "admin of B", headers: bearer(await tokenOf(foreignAdmin)), role: "admin", project: projects.b },
    { name: "reader of A", headers: byPassword("reader@internal"), role: "reader", ...ofA },
    { name: "member of A", headers: bearer(await tokenOf(member)), role: "member", ...ofA },
    { name: "admin of A", headers: bearer(await tokenOf("root@internal")), role: "admin", ...ofA },
  ];
}

const mayDo = ({ role }: Caller, [, , rule]: Route): boolean => {
  if (role === null) return false;
  return may({ userId: "", projectId: "", roles: [role], isAdmin: false, requestId: "" }, rule);
};

const nameOf = ([method, path]: Route): string => `${method} ${path}`;

/** What a route is sent, for a world; a route that has a body and none here is a mistake. */
function bodiesOf(route: Route, world: World): (string | undefined)[] {
  if (route[0] === "GET" || route[0] === "DELETE") return [undefined];
  const bodies = sampleBodies[nameOf(route)];
  if (!bodies) throw new Error(`${nameOf(route)} has no sample body: tell the tenant matrix`);
  return bodies(world);
}

/** The dialect's two trees and two formats. */
const forms = [
  { tree: "/ovirt-engine/api", accept: "application/xml" },
  { tree: "/api", accept: "application/json" },
] as const;

interface Asked {
  route: Route;
  caller: Caller;
  path: string;
  body: string | undefined;
  form: (typeof forms)[number];
}

const send = ({ route: [method], caller, path, body, form: { tree, accept } }: Asked): Promise<EngineReply> =>
  ask(engine, method === "ACTION" ? "POST" : method, tree + path, {
    as: null,
    headers: { ...caller.headers(), accept, "all-content": "true" },
    ...(body !== undefined && { xml: body }),
  });

/** An answer without what differs from one request, or one object, to the next. */
const unnamed = ({ status, text, headers }: EngineReply): string =>
  `${status} ${headers["location"] ?? ""} ${text}`
    .replace(/secret-[0-9a-f]{8}/g, "<secret>")
    .replace(/[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g, "<id>")
    .replace(/(\/events\/|\bid(?:":|=)")\d+/g, "$1<number>")
    .replace(/(?:[0-9a-f]{2}:){5}[0-9a-f]{2}/g, "<mac>")
    .replace(/\d{4}-\d\d-\d\d[T ][\d:.]+(?:\+00:00)?|\b1\d{12}\b|\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d/g, "<time>");

/** One statement for every row of a project, in every table that knows of projects, but for what is written about requests. */
async function digestsStatement(): Promise<string> {
  const tables = await engine.sql(
    `SELECT table_name AS name FROM information_schema.columns
     WHERE table_schema = current_schema() AND column_name = 'project_id' ORDER BY 1`,
  );
  expect(tables.length).toBeGreaterThan(10);
  const ofEach = tables.map(
    ({ name }) =>
      `SELECT '${name}: ' || md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) AS state FROM "${name}" t WHERE project_id = $1`,
  );
  return `SELECT string_agg(state, E'\n') AS states FROM (${ofEach.join(" UNION ALL ")}) s`;
}

let digests: string | null = null;
async function stateOf(project: string): Promise<string> {
  digests ??= await digestsStatement();
  const [row] = await engine.sql(digests, [project]);
  return row.states;
}

/** Which of a path's parts are A's: every choice but none. */
function* choicesOf(parts: readonly string[]): Generator<ReadonlySet<string>> {
  for (let bits = 1; bits < 2 ** parts.length; bits += 1) {
    yield new Set(parts.filter((_, at) => Math.floor(bits / 2 ** at) % 2 === 1));
  }
}

/** A's world, and that of the stranger, which is made anew when he has changed it. */
interface Worlds {
  ofA: World;
  ofB: World;
}

/**
 * What is wrong with how one of another project is answered. Whatever he names of A's, in the path, in the body, beside what is his own or
 * alone, is told as something that there is not.
 */
async function strangerLeaks(route: Route, caller: Caller, worlds: Worlds): Promise<string[]> {
  const leaks: string[] = [];
  const { ofA } = worlds;
  // What an admin may do more than a member is none of this dialect's.
  const isThorough = isLong || caller.role === "member";
  const none = emptyWorld();
  let turn = 0;
  const told = async (asked: Omit<Asked, "route" | "caller">): Promise<string> => {
    const reply = await send({ route, caller, ...asked });
    if (reply.status >= 500) leaks.push(`${reply.status} ${reply.text.slice(0, 200)}`);
    // Only what the request itself has said may come back.
    const said = `${asked.path}${asked.body ?? ""}`;
    for (const word of [ofA.secret, member, ofA.mac]) {
      if (reply.text.includes(word) && !said.includes(word)) leaks.push(`reads ${word}: ${reply.text.slice(0, 200)}`);
    }
    await rest(engine, projects.b);
    if (route[0] !== "GET" && reply.status < 300) {
      await forgetProject(engine, projects.b);
      worlds.ofB = await makeWorld(engine, projects.b, stranger);
    }
    return unnamed(reply);
  };
  const compare = async (path: (named: World) => string, body: (named: World) => string | undefined) => {
    turn += 1;
    for (const each of isLong ? forms : [forms[turn % forms.length] ?? forms[0]]) {
      const unknown = await told({ path: path(none), body: body(none), form: each });
      const real = await told({ path: path(ofA), body: body(ofA), form: each });
      if (real !== unknown) leaks.push(`${path(ofA)}: A's is told from an unknown one: ${real} / ${unknown}`);
    }
  };
  const parts = partsOf(route[1]);
  for (const at of bodiesOf(route, none).keys()) {
    const ownBody = (): string | undefined => bodiesOf(route, worlds.ofB)[at];
    const namingBody = (named: World): string | undefined => bodiesOf(route, named)[at];
    for (const chosen of isThorough ? choicesOf(parts) : [new Set(parts)]) {
      const path = (named: World): string => fillPath(route[1], (part) => (chosen.has(part) ? named : worlds.ofB));
      // What no project has is the same in all worlds: nothing of A's is named.
      if (path(ofA) === path(none)) continue;
      await compare(path, ownBody);
      if (ownBody() !== undefined) await compare(path, namingBody);
    }
    if (ownBody() !== undefined) await compare(() => fillPath(route[1], () => worlds.ofB), namingBody);
  }
  if (route[0] !== "GET") return leaks;
  const own = fillPath(route[1], () => worlds.ofB);
  const queries = ["?follow=disk_attachments.disk,nics,tags", ";max=1000", `?project_id=${projects.a}&all_tenants=1`];
  for (const query of ["", `?search=${ofA.secret}*`, ...queries]) {
    await told({ path: own + query, body: undefined, form: forms[0] });
  }
  return leaks;
}

/** What is wrong with one cell; empty when nothing is. */
async function leaksOf(route: Route, caller: Caller, worlds: Worlds): Promise<string[]> {
  const { ofA } = worlds;
  if (caller.project === projects.b) return strangerLeaks(route, caller, worlds);
  const path = fillPath(route[1], () => ofA);
  const { status, text } = await send({ route, caller, path, body: bodiesOf(route, ofA)[0], form: forms[0] });
  const shown = `${status}: ${text.slice(0, 200)}`;
  if (caller.role === null) return status === 401 && text === "" ? [] : [`${shown} instead of 401`];
  if (!mayDo(caller, route)) return status === 403 && !text.includes(ofA.secret) ? [] : [`${shown} instead of 403`];
  return [401, 403, 404].includes(status) || status >= 500 ? [`allowed, but ${shown}`] : [];
}

it("lets every kind of caller do on every route what the policy says, and nothing more", {
  timeout: 900_000,
}, async () => {
  const leaks: string[] = [];
  let cells = 0;
  /** Null once something may have changed it: what comes next gets a new one. */
  let ofA: World | null = null;
  let ofB = await makeWorld(engine, projects.b, stranger);
  for (const route of ovirtRoutes) {
    const mayChange = (caller: Caller): boolean =>
      route[0] !== "GET" && caller.project === projects.a && mayDo(caller, route);
    // Those first who must not change anything.
    const order = [...callers].sort((x, y) => Number(mayChange(x)) - Number(mayChange(y)));
    let before: string | null = null;
    for (const caller of order) {
      await beatImageServer(engine);
      if (!ofA) [ofA, before] = [await makeWorld(engine, projects.a, member), null];
      before ??= await stateOf(projects.a);
      const worlds = { ofA, ofB };
      const found = await leaksOf(route, caller, worlds);
      ofB = worlds.ofB;
      leaks.push(...found.map((leak) => `${nameOf(route)}, ${caller.name}: ${leak}`));
      cells += 1;
      if (mayChange(caller)) ofA = null;
      else if ((await stateOf(projects.a)) !== before) {
        leaks.push(`${nameOf(route)}, ${caller.name}: changes something of A's`);
        ofA = null;
      }
    }
  }
  process.stdout.write(
    `tenant matrix: ${ovirtRoutes.length} routes × ${callers.length} callers = ${cells} cells, ${leaks.length} leaks\n`,
  );
  expect(cells).toBe(ovirtRoutes.length * callers.length);
  expect(leaks).toEqual([]);
});
