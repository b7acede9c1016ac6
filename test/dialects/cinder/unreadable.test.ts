import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { opsRoutes, v3Routes } from "../../../apps/api/src/app.ts";
import type { Instance } from "../../kit/instance.ts";
import { type RawReply, rawRequest } from "../../kit/raw-request.ts";
import { setStatus, startApiOnly } from "../api-only.ts";

const project = "00000000000000000000000000000001";
const token = "an-admin";
const config = {
  auth: {
    mode: "static",
    tokens: [
      {
        sha256: createHash("sha256").update(token).digest("hex"),
        user_id: "u",
        project_id: project,
        roles: ["admin"],
      },
    ],
  },
};
const undecodable =
  "Error decoding your request. Either the URL or the request body contained characters that could not be decoded by Cinder.";

/** Every route with a token, once; names in paths are filled by `part`. */
const everyRoute = (part: string) =>
  [
    ...v3Routes.map(([method, path, third]) => {
      const actions = method === "ACTION" ? Object.keys(third) : [null];
      return actions.map((action) => ({
        method: method === "ACTION" ? "POST" : method,
        path: `/v3/${project}${path}`.replace(/:\w+/g, part),
        action,
      }));
    }),
    ...opsRoutes
      .filter(([, , rule]) => rule !== "public")
      .map(([method, path]) => [{ method: method as string, path: path.replace(/:\w+/g, part), action: null }]),
  ].flat();

const askerOf =
  (instance: Instance) =>
  (method: string, path: string, body?: string | Buffer, headers: Record<string, string> = { "x-auth-token": token }) =>
    rawRequest(Number(new URL(instance.url).port), {
      method,
      path,
      headers: { ...(body !== undefined && { "content-type": "application/json" }), ...headers },
      ...(body !== undefined && { body }),
    });

const messageOf = ({ text }: RawReply): string => (Object.values(JSON.parse(text))[0] as { message: string }).message;

it("refuses text that is not UTF-8 wherever it comes in, and asks for a token before", {
  timeout: 300_000,
}, async () => {
  await using instance = await startApiOnly({ config });
  const ask = askerOf(instance);
  for (const { method, path } of everyRoute(project)) {
    const reply = await ask(method, `${path}?name=%ff`, method === "GET" ? undefined : "{}");
    expect([reply.status, messageOf(reply)], `${method} ${path}`).toEqual([400, undecodable]);
    expect((await ask(method, `${path}?name=%ff`, undefined, {})).status, `${method} ${path}`).toBe(401);
    if (method !== "GET" && method !== "DELETE") {
      const reply = await ask(method, path, Buffer.from('{"backup": {"name": "\xff"}}', "latin1"));
      expect([reply.status, messageOf(reply)], `${method} ${path}`).toEqual([400, "Malformed request body"]);
    }
  }
  for (const query of ["?%c3%28=x", "?name=a%ed%a0%80", "?name=%e2%82"]) {
    const reply = await ask("GET", `/v3/${project}/backups${query}`);
    expect([reply.status, messageOf(reply)], query).toEqual([400, undecodable]);
  }
  for (const { method, path } of everyRoute("%ff")) {
    if (!path.includes("%ff")) continue;
    const reply = await ask(method, path, method === "GET" ? undefined : "{}");
    expect([reply.status, messageOf(reply)], `${method} ${path}`).toEqual([400, undecodable]);
  }
  expect(instance.logs()).not.toContain("request failed");
});

it("takes a % that begins no escape for itself, in every path, with and without a token", {
  timeout: 300_000,
}, async () => {
  await using instance = await startApiOnly({ config });
  const ask = askerOf(instance);
  for (const { method, path, action } of everyRoute("%")) {
    if (!path.includes("%")) continue;
    const body =
      method === "GET" || method === "DELETE" ? undefined : JSON.stringify(action === null ? {} : { [action]: {} });
    const [known, anonymous] = [await ask(method, path, body), await ask(method, path, body, {})];
    expect(known.status, `${method} ${path}: ${known.text}`).toBeLessThan(500);
    expect(anonymous.status, `${method} ${path} without a token`).toBe(401);
  }
  const named = await ask("GET", `/v3/${project}/backups/%`);
  expect([named.status, messageOf(named)]).toEqual([404, "Backup % could not be found."]);
  const operation = await ask("GET", "/ops/operations/%25zz");
  expect([operation.status, messageOf(operation)]).toEqual([404, "Operation %zz could not be found."]);
  expect(instance.logs()).not.toContain("request failed");
});

/** Lists in lists, and objects in objects, far deeper than anything that calls itself can follow. */
const deep = ["[".repeat(30_000) + "]".repeat(30_000), `${'{"a":'.repeat(15_000)}1${"}".repeat(15_000)}`];

it("refuses a body that is nested 30,000 deep, on every route and in every field", { timeout: 300_000 }, async () => {
  await using instance = await startApiOnly({ config });
  const ask = askerOf(instance);
  const record = (text: string): string => Buffer.from(text).toString("base64");
  for (const nested of deep) {
    for (const { method, path, action } of everyRoute(project)) {
      if (method === "GET" || method === "DELETE") continue;
      const bodies = [nested, action === null ? `{"volume":${nested}}` : `{"${action}":{"a":${nested}}}`];
      for (const body of bodies) {
        const reply = await ask(method, path, body);
        expect(
          [reply.status, path.startsWith("/ops") || reply.text.length < 500],
          `${method} ${path}: ${reply.text}`,
        ).toEqual([path.startsWith("/ops") && body.length > 65_536 ? 413 : 400, true]);
      }
    }
  }
  for (const text of [`{"id":${"[".repeat(30_000)}${"]".repeat(30_000)}}`, "[".repeat(30_000)]) {
    const body = { "backup-record": { backup_service: "cinder.backup.drivers.posix", backup_url: record(text) } };
    expect((await ask("POST", `/v3/${project}/backups/import_record`, JSON.stringify(body))).status).toBe(400);
  }
  const filter = encodeURIComponent(`${"{'a':".repeat(2_000)}1${"}".repeat(2_000)}`).slice(0, 15_000);
  expect((await ask("GET", `/v3/${project}/volumes?metadata=${filter}`)).status).toBeLessThan(500);
  const tolerable = {
    instance: { name: "nested", configuration: JSON.parse(`${'{"a":'.repeat(90)}1${"}".repeat(90)}`) },
  };
  expect((await ask("POST", "/ops/instances", JSON.stringify(tolerable))).status).toBe(201);
  expect(instance.logs()).not.toContain("request failed");
});

it("refuses a volume of two sources in Cinder's words", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askerOf(instance);
  const make = async (path: string, body: object): Promise<string> => {
    const reply = await ask("POST", `/v3/${project}/${path}`, JSON.stringify(body), {
      "x-auth-token": token,
      "content-type": "application/json",
      "openstack-api-version": "volume 3.71",
    });
    expect(reply.status, reply.text).toBe(202);
    return (Object.values(JSON.parse(reply.text))[0] as { id: string }).id;
  };
  const volume = await make("volumes", { volume: { size: 1 } });
  await setStatus(instance, "volumes", volume, "available");
  const snapshot = await make("snapshots", { snapshot: { volume_id: volume } });
  await setStatus(instance, "snapshots", snapshot, "available");
  const backup = await make("backups", { backup: { volume_id: volume } });
  await setStatus(instance, "backups", backup, "available");
  const sources = { snapshot_id: snapshot, source_volid: volume, backup_id: backup };
  const keys = Object.keys(sources) as (keyof typeof sources)[];
  for (const left of keys) {
    const two = Object.fromEntries(Object.entries(sources).filter(([key]) => key !== left));
    const reply = await ask("POST", `/v3/${project}/volumes`, JSON.stringify({ volume: { size: 1, ...two } }));
    const text = "Invalid input received: May specify only one of backup, imageRef, snapshot, source volume";
    expect([reply.status, messageOf(reply)], JSON.stringify(two)).toEqual([400, text]);
  }
});
