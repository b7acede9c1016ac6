import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startApiOnly } from "../dialects/api-only.ts";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import type { Instance } from "../kit/instance.ts";
import { rawRequest } from "../kit/raw-request.ts";

const project = "0123456789abcdef0123456789abcdef";
const tokenOf = (role: string): string => `the token of ${role}; with=odd%20characters`;
const tokens = ["reader", "member", "admin"].map((role) => ({
  sha256: createHash("sha256").update(tokenOf(role)).digest("hex"),
  ...{ user_id: `anna-${role}`, project_id: project, roles: [role] },
}));

const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
beforeAll(async () => {
  instance = stack.use(await startApiOnly({ config: { auth: { mode: "static", tokens } } }));
  browser = stack.use(await startBrowser(instance.url));
});
afterAll(() => stack.disposeAsync());

const port = (): number => Number(new URL(instance.url).port);
const json = { "content-type": "application/json" };

/** The cookie that signing in gives, as a browser sends it back. */
async function signIn(role: string): Promise<string> {
  const reply = await instance.request("POST", "/ops/session", { token: tokenOf(role) });
  expect(reply.status, reply.text).toBe(204);
  const cookie = reply.headers.get("set-cookie") ?? "";
  expect(cookie).toMatch(/^tephra_session=[^;]+; Path=\/; HttpOnly; SameSite=Strict$/);
  return cookie.slice(0, cookie.indexOf(";"));
}

describe("a session's cookie", () => {
  it("is the caller's own token, for the console alone", async () => {
    const cookie = await signIn("member");
    const reply = await instance.request("GET", "/ops/session", undefined, { cookie, "x-tephra-console": "1" });
    expect(reply.status, reply.text).toBe(200);
    expect(reply.body.session).toMatchObject({
      mode: "static",
      user_id: "anna-member",
      project_id: project,
      roles: ["member"],
    });
    expect(reply.body.session.may).toContain("backup:create");
    expect(reply.body.session.may).not.toContain("ops:audit");
    const cinder = await instance.request("GET", `/v3/${project}/backups`, undefined, {
      cookie,
      "x-tephra-console": "1",
    });
    expect(cinder.status).toBe(200);
  });

  const foreign: readonly (readonly [string, Record<string, string>])[] = [
    ["without the header that only scripts can send", {}],
    ["of another site's page", { "x-tephra-console": "1", origin: "https://evil.example" }],
    ["of a page on another port", { "x-tephra-console": "1", origin: "http://127.0.0.1:3000" }],
    ["that the browser says another site has asked for", { "x-tephra-console": "1", "sec-fetch-site": "cross-site" }],
    ["that the browser says a neighbour has asked for", { "x-tephra-console": "1", "sec-fetch-site": "same-site" }],
    ["of a page without an origin", { "x-tephra-console": "1", origin: "null" }],
  ];
  it.each(foreign)("counts for nothing in a request %s", async (_, headers) => {
    const cookie = await signIn("admin");
    for (const path of ["/ops/session", "/ops/audit", "/ops/operations", `/v3/${project}/backups`]) {
      const reply = await rawRequest(port(), { method: "GET", path, headers: { ...headers, cookie } });
      expect(reply.status, path).toBe(403);
    }
    const path = "/ops/repositories/main/reap";
    const post = await rawRequest(port(), {
      method: "POST",
      path,
      headers: { ...headers, ...json, cookie },
      body: "{}",
    });
    expect(post.status).toBe(403);
  });

  it("counts for nothing in a form", async () => {
    const cookie = await signIn("admin");
    const path = "/ops/repositories/main/reap";
    for (const type of ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]) {
      const headers = { cookie, "content-type": type };
      expect((await rawRequest(port(), { method: "POST", path, headers, body: "dry_run=false" })).status).toBe(403);
      const asked = { ...headers, "x-tephra-console": "1" };
      expect((await rawRequest(port(), { method: "POST", path, headers: asked, body: "dry_run=false" })).status).toBe(
        415,
      );
    }
    expect(await instance.sql("SELECT id FROM operations")).toEqual([]);
  });

  it("does not stand in the way of a token, and is taken for none where it is broken", async () => {
    const headers = { cookie: "tephra_session=%zz", "x-auth-token": tokenOf("reader") };
    expect((await instance.request("GET", "/ops/session", undefined, headers)).status).toBe(200);
    const broken = { cookie: "tephra_session=%zz", "x-tephra-console": "1" };
    expect((await instance.request("GET", "/ops/session", undefined, broken)).status).toBe(401);
  });

  it("opens the queue board, by a link or a typed address, not from another site", async () => {
    const cookie = await signIn("admin");
    const ask = (headers: Record<string, string>) =>
      rawRequest(port(), { method: "GET", path: "/ops/queues", headers: { ...headers, cookie } });
    expect((await ask({ "sec-fetch-site": "same-origin" })).status).toBe(200);
    expect((await ask({ "sec-fetch-site": "none" })).status).toBe(200);
    expect((await ask({ "sec-fetch-site": "cross-site" })).status).toBe(403);
    expect((await ask({ "sec-fetch-site": "same-site" })).status).toBe(403);
    const reader = await signIn("reader");
    const refused = await rawRequest(port(), { method: "GET", path: "/ops/queues", headers: { cookie: reader } });
    expect(refused.status).toBe(403);
  });
});

describe("signing in", () => {
  it("tells nobody why it is refused, lets nobody try for long, and is on record", async () => {
    const wrong = await instance.request("POST", "/ops/session", { token: "nonsense" });
    expect([wrong.status, wrong.headers.get("set-cookie")]).toEqual([401, null]);
    expect(wrong.headers.get("www-authenticate")).toBe('Token mode="static"');
    const statuses: number[] = [];
    for (let at = 0; at < 6; at += 1) {
      statuses.push((await instance.request("POST", "/ops/session", { token: `guess ${at}` })).status);
    }
    expect(statuses.at(-1)).toBe(429);
    await instance.killApi("SIGTERM");
    await instance.startApi();
    const cookie = await signIn("admin");
    const audit = await instance.request("GET", "/ops/audit?resource=session", undefined, {
      cookie,
      "x-tephra-console": "1",
    });
    expect(audit.body.audit[0]).toMatchObject({ resource: "session", to: "signed in", user_id: "anna-admin" });
  });

  it.each([
    [{}, 400],
    [{ token: "" }, 400],
    [{ token: "x", more: 1 }, 400],
    [{ user: "a", password: "b", project: "c" }, 400],
  ])("with %j is refused with %d", async (body, status) => {
    const reply = await instance.request("POST", "/ops/session", body);
    expect([reply.status, reply.headers.get("set-cookie")]).toEqual([status, null]);
  });

  it("by a browser shows the page that was asked for, and signing out ends it", async () => {
    const page = await browser.open();
    await page.goto(`${instance.url}/console/operations?state=failed`);
    await page.getByLabel("Token").fill("nonsense");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("alert").getByText("requires authentication").waitFor();
    await page.getByLabel("Token").fill(tokenOf("reader"));
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Operations" }).waitFor();
    expect(new URL(page.url()).search).toBe("?state=failed");
    const [cookie] = await page.context().cookies();
    expect(cookie).toMatchObject({ name: "tephra_session", httpOnly: true, sameSite: "Strict", expires: -1 });
    expect(await page.evaluate("document.cookie")).toBe("");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("heading", { name: "Sign in to Tephra" }).waitFor();
    expect(await page.context().cookies()).toEqual([]);
    expect(browser.complaints()).toEqual([]);
  });
});

describe("the console's files", () => {
  it("come with headers that let nothing else in", async () => {
    const page = await instance.request("GET", "/console/");
    expect(page.status).toBe(200);
    expect(page.headers.get("content-security-policy")).toContain(
      "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-",
    );
    expect(page.headers.get("content-security-policy")).not.toContain("unsafe");
    expect(page.headers.get("content-security-policy")).toContain("require-trusted-types-for 'script'");
    const expected = {
      "cache-control": "no-cache",
      "cross-origin-opener-policy": "same-origin",
      "cross-origin-resource-policy": "same-origin",
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
    };
    for (const [name, value] of Object.entries(expected)) expect(page.headers.get(name), name).toBe(value);
    expect(page.headers.get("etag")).not.toBeNull();
    expect(page.text).not.toMatch(/<script(?![^>]*src=)|<style|style=|\son\w+=/);
    const [script = ""] = /\/console\/assets\/[\w.-]+\.js/.exec(page.text) ?? [];
    const file = await instance.request("GET", script, undefined, { "accept-encoding": "br" });
    expect([file.status, file.headers.get("content-encoding")]).toEqual([200, "br"]);
    expect(file.headers.get("cache-control")).toBe("public, max-age=31536000, immutable");
  });

  it("are its pages on every path, and nothing else of the machine", async () => {
    const page = await instance.request("GET", "/console/");
    expect((await instance.request("GET", "/console/repositories/a.b?x=1")).text).toBe(page.text);
    const bare = await rawRequest(port(), { method: "GET", path: "/console", headers: {} });
    expect([bare.status, bare.headers["location"]]).toEqual([301, "/console/"]);
    for (const path of ["/console/assets/none.js", "/console/assets/../../package.json"]) {
      const reply = await rawRequest(port(), { method: "GET", path, headers: {} });
      expect(reply.status === 404 || reply.text === page.text, path).toBe(true);
    }
    expect((await instance.request("POST", "/console/", {})).status).toBe(404);
  });
});
