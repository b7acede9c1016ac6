import { join } from "node:path";
import { afterAll, beforeAll, expect, inject, it, vi } from "vitest";
import { makeCertificate } from "../kit/certificate.ts";
import type { Instance } from "../kit/instance.ts";
import { type IdentityServer, startIdentity } from "../kit/keystone.ts";
import { startTlsProxy } from "../kit/tls-proxy.ts";
import { waitFor } from "../kit/wait-for.ts";
import { fingerprint, startApiOnly } from "./api-only.ts";

/** Long enough for a slow machine to use a token, short enough to see one run out. */
const tokenLifeSeconds = 30;
const cacheMs = 2_000;

const people = {
  reader: { name: "rhea", password: "pw-rhea", project: "alpha", role: "reader" },
  member: { name: "milo", password: "pw-milo", project: "alpha", role: "member" },
  admin: { name: "ada", password: "pw-ada", project: "office", role: "admin" },
  stranger: { name: "sven", password: "pw-sven", project: "beta", role: "member" },
  pia: { name: "pia", password: "pw-pia", project: "alpha", role: "member" },
  roleless: { name: "otto", password: "pw-otto", project: "alpha", role: "gardener" },
};
const service = { name: "tephra", password: "pw-tephra", project: "service", role: "service" };

// A real Keystone takes its time over every question on a busy machine.
vi.setConfig({ testTimeout: 180_000 });

let keystone: IdentityServer;
const ids: Record<string, string> = {};

beforeAll(async () => {
  keystone = await startIdentity({ tokenLifeSeconds });
  for (const user of [service, ...Object.values(people)]) ids[user.name] = await keystone.addUser(user);
  // In two projects. Here, since Keystone takes tokens of the second in which a password was set for older ones.
  await keystone.addUser({ ...people.pia, project: "beta" });
  for (const name of ["alpha", "beta", "office"]) ids[name] = await keystone.projectId(name);
}, 300_000);
afterAll(() => keystone?.[Symbol.asyncDispose]());

const settings = (more: object = {}) => ({
  mode: "keystone",
  keystone: {
    url: `${keystone.url}/v3/`,
    username: service.name,
    password: service.password,
    www_authenticate_uri: "https://identity.example:5000",
    cache_ms: cacheMs,
    timeout_ms: 20_000,
    ...more,
  },
});

const asking = (instance: Instance) => (token: string | null, method: string, path: string, body?: unknown) =>
  instance.request(method, path, body, token === null ? {} : { "x-auth-token": token });

const refusal = {
  error: { code: 401, title: "Unauthorized", message: "The request you have made requires authentication." },
};

it("signs browsers in, lets them change the project, and revokes their token when they sign out", async () => {
  await using instance = await startApiOnly({ config: { auth: settings() } });
  const { alpha, beta, pia: user } = ids;
  const signIn = (body: object, headers: Record<string, string> = {}) =>
    instance.request("POST", "/ops/session", body, headers);
  const shown = { user: "pia", password: "pw-pia", project: "alpha" };
  for (const wrong of [{ password: "guess" }, { project: "office" }, { user: "nobody" }, { passcode: "123456" }]) {
    const reply = await signIn({ ...shown, ...wrong });
    expect([reply.status, reply.headers.get("set-cookie")], JSON.stringify(wrong)).toEqual([401, null]);
  }
  const cookieOf = (reply: { headers: Headers; status: number; text: string }): Record<string, string> => {
    expect(reply.status, reply.text).toBe(204);
    return { cookie: reply.headers.get("set-cookie")?.split(";")[0] ?? "", "x-tephra-console": "1" };
  };
  const cookie = cookieOf(await signIn(shown));
  const { body } = await instance.request("GET", "/ops/session", undefined, cookie);
  expect(body.session).toMatchObject({
    mode: "keystone",
    user_id: user,
    project_id: alpha,
    roles: expect.arrayContaining(["member"]),
  });
  expect(body.session.projects.map(({ id }: { id: string }) => id).sort()).toEqual([alpha, beta].sort());
  expect(Date.parse(body.session.expires_at)).toBeGreaterThan(Date.now());
  expect((await signIn({ other_project_id: ids["office"] }, cookie)).status).toBe(401);
  expect((await signIn({ other_project_id: beta })).status).toBe(401);
  const other = cookieOf(await signIn({ other_project_id: beta }, cookie));
  const changed = await instance.request("GET", "/ops/session", undefined, other);
  expect(changed.body.session).toMatchObject({ user_id: user, project_id: beta });
  const out = await instance.request("DELETE", "/ops/session", undefined, other);
  expect([out.status, out.headers.get("set-cookie")]).toEqual([204, expect.stringContaining("Max-Age=0")]);
  // What was found out about a token holds for `cache_ms`.
  await waitFor(async () => (await instance.request("GET", "/ops/operations", undefined, other)).status === 401, {
    what: "the token is not valid any more",
  });
});

it("takes Keystone's tokens, with the user, the project and the roles that they have there", async () => {
  await using instance = await startApiOnly({ config: { auth: settings() } });
  const ask = asking(instance);
  const { alpha, beta, office } = ids;
  const reader = await keystone.tokenOf(people.reader);
  const member = await keystone.tokenOf(people.member);
  const admin = await keystone.tokenOf(people.admin);
  const stranger = await keystone.tokenOf(people.stranger);
  const created = await ask(member, "POST", `/v3/${alpha}/volumes`, { volume: { size: 1, name: "v" } });
  expect(created.status, created.text).toBe(202);
  const { id, user_id: userId } = created.body.volume;
  expect(userId).toBe(ids["milo"]);
  const before = await fingerprint(instance);
  const statuses = async (token: string | null, project: string | undefined) => [
    (await ask(token, "GET", `/v3/${project}/volumes/${id}`)).status,
    (await ask(token, "POST", `/v3/${project}/volumes`, { volume: { size: 0 } })).status,
    (await ask(token, "DELETE", `/v3/${project}/volumes/${id}`)).status,
    (await ask(token, "GET", `/v3/${project}/os-quota-sets/${alpha}`)).status,
    (await ask(token, "PUT", `/v3/${project}/os-quota-sets/${alpha}`, { quota_set: { volumes: -7 } })).status,
  ];
  expect(await statuses(reader, alpha)).toEqual([200, 400, 403, 200, 403]);
  expect(await statuses(stranger, beta)).toEqual([404, 400, 404, 403, 403]);
  expect(await statuses(stranger, alpha)).toEqual([400, 400, 400, 400, 400]);
  expect(await statuses(await keystone.tokenOf(people.roleless), alpha)).toEqual([403, 400, 403, 403, 403]);
  expect((await statuses(admin, office)).filter((s) => s === 403 || s === 404)).toEqual([]);
  expect(await statuses(null, alpha)).toEqual([401, 401, 401, 401, 401]);
  expect(await fingerprint(instance)).toEqual(before);
});

it("refuses what Keystone does not know, and says where tokens come from", async () => {
  await using instance = await startApiOnly({ config: { auth: settings() } });
  const ask = asking(instance);
  const unscoped = await keystone.tokenOf({ name: people.member.name, password: people.member.password });
  for (const token of [null, "", "nonsense", "x".repeat(8_000), "x".repeat(9_000), unscoped]) {
    const reply = await ask(token, "GET", `/v3/${ids["alpha"]}/backups`);
    expect([reply.status, reply.body]).toEqual([401, refusal]);
    expect(reply.headers.get("www-authenticate")).toBe('Keystone uri="https://identity.example:5000"');
  }
  expect((await ask(null, "GET", "/ops/operations")).status).toBe(401);
  expect((await ask(null, "GET", "/")).status).toBe(300);
});

it("forgets a revoked token within the life of its cache, and one that ran out at once", async () => {
  await using instance = await startApiOnly({ config: { auth: settings({ cache_ms: 60_000 }) } });
  await using brief = await startApiOnly({ config: { auth: settings() } });
  const path = `/v3/${ids["alpha"]}/backups`;
  const revoked = await keystone.tokenOf(people.reader);
  expect((await asking(brief)(revoked, "GET", path)).status).toBe(200);
  await keystone.revoke(revoked);
  const revokedAt = performance.now();
  await waitFor(async () => (await asking(brief)(revoked, "GET", path)).status === 401, {
    what: "the revoked token is refused",
    timeoutMs: 30_000,
  });
  expect(performance.now() - revokedAt).toBeLessThan(cacheMs + 20_000);
  const ending = await keystone.tokenOf(people.member);
  expect((await asking(instance)(ending, "GET", path)).status).toBe(200);
  await waitFor(async () => (await asking(instance)(ending, "GET", path)).status === 401, {
    what: "the token that ran out is refused",
    timeoutMs: (tokenLifeSeconds + 5) * 1000,
  });
  // By now the service's own token has run out, too.
  expect((await asking(instance)(await keystone.tokenOf(people.member), "GET", path)).status).toBe(200);
});

it("logs in again when its own token is revoked", async () => {
  await using instance = await startApiOnly({ config: { auth: settings() } });
  const path = `/v3/${ids["alpha"]}/backups`;
  expect((await asking(instance)(await keystone.tokenOf(people.reader), "GET", path)).status).toBe(200);
  await keystone.addUser(service); // A new password ends every token of the user, also when it is the old one.
  const fresh = await keystone.tokenOf(people.reader);
  // And for the rest of this second also those that are given out anew: a Keystone counts in seconds.
  await waitFor(async () => (await asking(instance)(fresh, "GET", path)).status === 200, {
    what: "the service has a token again",
    timeoutMs: 15_000,
  });
});

it("asks once for requests that come at once, and keeps no more answers than it may", async () => {
  await using instance = await startApiOnly({ config: { auth: settings({ cache_ms: 60_000, cache_tokens_max: 2 }) } });
  const path = `/v3/${ids["alpha"]}/backups`;
  const tokens = await Promise.all(Array.from({ length: 4 }, () => keystone.tokenOf(people.reader)));
  const all = await Promise.all([...tokens, ...tokens].map((token) => asking(instance)(token, "GET", path)));
  expect(all.map((reply) => reply.status)).toEqual(Array(8).fill(200));
});

it("says 503 while Keystone is away, never 401, and goes on when it is back", async () => {
  await using instance = await startApiOnly({ config: { auth: settings({ cache_ms: 60_000, timeout_ms: 3_000 }) } });
  const ask = asking(instance);
  const path = `/v3/${ids["alpha"]}/backups`;
  const known = await keystone.tokenOf(people.reader);
  const fresh = await keystone.tokenOf(people.member);
  const answered = async (token: string) => (await ask(token, "GET", path)).status === 200;
  await waitFor(() => answered(known), { what: "the token is known", timeoutMs: 60_000 });
  keystone.program.kill("SIGSTOP");
  try {
    expect((await ask(known, "GET", path)).status).toBe(200);
    expect((await ask(null, "GET", path)).status).toBe(401);
    const plain = await ask(fresh, "GET", path);
    expect([plain.status, plain.headers.get("www-authenticate")]).toEqual([503, null]);
    expect(plain.text).toContain("<h1>503 Service Unavailable</h1>");
    expect(plain.text).toContain("The Keystone service is temporarily unavailable.");
    const ops = await ask(fresh, "GET", "/ops/operations");
    expect(ops.body).toEqual({
      serviceUnavailable: { code: 503, message: "The Keystone service is temporarily unavailable." },
    });
  } finally {
    keystone.program.kill("SIGCONT");
  }
  await waitFor(() => answered(fresh), { what: "Keystone is asked again", timeoutMs: 60_000 });
  for (const secret of [service.password, known, fresh]) expect(instance.logs()).not.toContain(secret);
});

it("is asked over TLS, with the authority that the configuration names and no other", async () => {
  const files = await makeCertificate(join(inject("servers").dir, "keystone"));
  await using proxy = await startTlsProxy(files, Number(new URL(keystone.url).port));
  const token = await keystone.tokenOf(people.reader);
  const statusWith = async (ca: string | null): Promise<number> => {
    const auth = settings({ url: `https://127.0.0.1:${proxy.port}/v3/`, ca });
    await using instance = await startApiOnly({ config: { auth } });
    return (await asking(instance)(token, "GET", `/v3/${ids["alpha"]}/backups`)).status;
  };
  expect(await statusWith(files.ca)).toBe(200);
  expect(await statusWith(null)).toBe(503);
});

it("says 503 when its own user may not log in", async () => {
  await using instance = await startApiOnly({ config: { auth: settings({ password: "wrong" }) } });
  const token = await keystone.tokenOf(people.reader);
  expect((await asking(instance)(token, "GET", `/v3/${ids["alpha"]}/backups`)).status).toBe(503);
});

it("lets every role of a project do what a member may where the deprecated defaults are asked for", async () => {
  await using instance = await startApiOnly({ config: { auth: { ...settings(), enforce_new_defaults: false } } });
  const ask = asking(instance);
  const otto = await keystone.tokenOf(people.roleless);
  const volumes = `/v3/${ids["alpha"]}/volumes`;
  expect((await ask(otto, "POST", volumes, { volume: { size: 1 } })).status).toBe(202);
  const quotas = `/v3/${ids["alpha"]}/os-quota-sets/${ids["alpha"]}`;
  expect((await ask(otto, "PUT", quotas, { quota_set: { volumes: 1 } })).status).toBe(403);
});
