import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { opsRoutes, v3Routes } from "../../apps/api/src/app.ts";
import type { Instance } from "../kit/instance.ts";
import { type RawReply, rawRequest } from "../kit/raw-request.ts";
import { fingerprint, startApiOnly } from "./api-only.ts";

const project = "00000000000000000000000000000001";
const dashboard = "https://dashboard.example";

const portOf = (instance: Instance): number => Number(new URL(instance.url).port);

/** Every route once: method and path, ids being any. */
const everyRoute = [
  ...v3Routes.map(([method, path]) => [method === "ACTION" ? "POST" : method, `/v3/${project}${path}`] as const),
  ...opsRoutes.map(([method, path]) => [method, path] as const),
  ["GET", "/"] as const,
  ["GET", "/ops/queues"] as const,
].map(([method, path]) => ({ method, path: path.replace(/:\w+/g, project) }));

it("answers by no name but its own, on every route, where it asks for no token", async () => {
  await using instance = await startApiOnly({ config: { allowed_hosts: ["backup.internal"] } });
  const port = portOf(instance);
  const before = await fingerprint(instance);
  const asked = (host: string, path = `/v3/${project}/backups`): Promise<RawReply> =>
    rawRequest(port, { method: "GET", path, headers: { host } });
  for (const host of [
    "evil.example",
    "evil.example:8776",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "backup.internal.",
    "x",
  ]) {
    const status = host === "backup.internal." ? 200 : 403;
    expect((await asked(host)).status, host).toBe(status);
  }
  for (const host of [
    "localhost",
    `localhost:${port}`,
    "LOCALHOST",
    `127.0.0.1:${port}`,
    "127.1.2.3",
    "[::1]",
    "backup.internal",
  ]) {
    expect((await asked(host)).status, host).toBe(200);
  }
  for (const { method, path } of everyRoute) {
    const reply = await rawRequest(port, { method, path, headers: { host: "evil.example", "content-length": "0" } });
    expect(reply.status, `${method} ${path}`).toBe(403);
  }
  const forwarded = { host: "evil.example", "x-forwarded-host": "localhost" };
  expect((await rawRequest(port, { method: "GET", path: "/v3/", headers: forwarded })).status).toBe(403);
  expect(await fingerprint(instance)).toEqual(before);
});

it("lets pages of other sites change nothing, on any route, and takes no body that a form can send", async () => {
  await using instance = await startApiOnly({ config: { cors: { allowed_origins: [dashboard] } } });
  const port = portOf(instance);
  const before = await fingerprint(instance);
  const changing = everyRoute.filter(({ method }) => method !== "GET");
  const json = { "content-type": "application/json" };
  const foreign: Record<string, string>[] = [
    { origin: "https://evil.example", ...json },
    { origin: "null", ...json },
    { origin: "http://127.0.0.1:1", ...json },
    { "sec-fetch-site": "cross-site", ...json },
    { "sec-fetch-site": "same-site", ...json },
  ];
  const body = JSON.stringify({ volume: { size: 1 } });
  for (const { method, path } of changing) {
    for (const headers of foreign) {
      const reply = await rawRequest(port, { method, path, headers, body });
      expect(reply.status, `${method} ${path} ${JSON.stringify(headers)}`).toBe(403);
    }
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]) {
      const reply = await rawRequest(port, {
        method,
        path,
        headers: type === "" ? {} : { "content-type": type },
        body,
      });
      // A deletion reads no body; without a cookie, signing out is nothing.
      const unread = path === "/ops/session" ? [204] : [400, 404, 415];
      const refused = method === "DELETE" ? unread : [415];
      expect(refused, `${method} ${path} ${type}: ${reply.status} ${reply.text}`).toContain(reply.status);
    }
  }
  expect(await fingerprint(instance)).toEqual(before);
  for (const headers of [
    {},
    { origin: dashboard },
    { origin: instance.url, "sec-fetch-site": "same-origin" },
    { "sec-fetch-site": "none" },
  ]) {
    const reply = await rawRequest(port, {
      method: "POST",
      path: `/v3/${project}/volumes`,
      headers: { ...json, ...headers },
      body,
    });
    expect(reply.status, JSON.stringify(headers)).toBe(202);
  }
  const bare = await rawRequest(port, {
    method: "POST",
    path: "/ops/repositories/main/rescan",
    headers: { "content-length": "0" },
  });
  expect(bare.status, bare.text).toBe(202);
});

it("tells browsers that pages of the configured origins may ask, and no others", async () => {
  const token = "a-token";
  const tokens = [
    { sha256: createHash("sha256").update(token).digest("hex"), user_id: "u", project_id: project, roles: ["member"] },
  ];
  const config = { auth: { mode: "static", tokens }, cors: { allowed_origins: [dashboard], max_age_seconds: 60 } };
  await using instance = await startApiOnly({ config });
  const port = portOf(instance);
  const preflight = (origin: string, path: string): Promise<RawReply> =>
    rawRequest(port, {
      method: "OPTIONS",
      path,
      headers: {
        origin,
        "access-control-request-method": "GET",
        "access-control-request-headers": "x-auth-token,openstack-api-version",
      },
    });
  for (const path of [`/v3/${project}/backups/detail`, "/ops/operations"]) {
    const allowed = await preflight(dashboard, path);
    expect(allowed.status).toBe(200);
    expect(allowed.headers).toMatchObject({
      "access-control-allow-origin": dashboard,
      "access-control-allow-methods": expect.stringContaining("POST"),
      "access-control-allow-headers": expect.stringContaining("X-Auth-Token"),
      "access-control-max-age": "60",
    });
    expect((await preflight("https://evil.example", path)).headers).not.toHaveProperty("access-control-allow-origin");
    const headers = { origin: dashboard, "x-auth-token": token };
    const answer = await rawRequest(port, { method: "GET", path, headers });
    expect(answer.status).toBe(200);
    expect(answer.headers["access-control-allow-origin"]).toBe(dashboard);
    expect(answer.headers["vary"]).toContain("Origin");
    const refused = await rawRequest(port, { method: "GET", path, headers: { origin: dashboard } });
    expect([refused.status, refused.headers["access-control-allow-origin"]]).toEqual([401, dashboard]);
  }
  // With tokens asked for, a name says nothing about who asks.
  expect((await rawRequest(port, { method: "GET", path: "/healthz", headers: { host: "any.example" } })).status).toBe(
    200,
  );
});
