import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { ask, basic, declaration, jsonHeaders, password, plain, startEngine } from "./engine.ts";

let engine: Instance;
beforeAll(async () => {
  engine = await startEngine();
});
afterAll(() => engine?.[Symbol.asyncDispose]());

const form = { "content-type": "application/x-www-form-urlencoded", accept: "application/json" };

const logIn = (fields: Record<string, string>) =>
  ask(engine, "POST", "/ovirt-engine/sso/oauth/token", {
    as: null,
    headers: form,
    xml: new URLSearchParams({ grant_type: "password", scope: "ovirt-app-api", ...fields }).toString(),
  });

describe("logging in", () => {
  it("gives a token for a password, which works until it is withdrawn", async () => {
    const reply = await logIn({ username: "admin@internal", password });
    expect(reply.json).toEqual({
      access_token: expect.stringMatching(/^[\w-]{43}$/),
      scope: "ovirt-app-api",
      exp: expect.stringMatching(/^\d{13}$/),
      token_type: "bearer",
    });
    const bearer = { authorization: `Bearer ${reply.json.access_token}` };
    const show = () => ask(engine, "GET", "/ovirt-engine/api", { as: null, headers: bearer });
    expect((await show()).status).toBe(200);
    const rows = await engine.sql("SELECT digest FROM ovirt_tokens");
    expect(JSON.stringify(rows)).not.toContain(reply.json.access_token);
    const out = await ask(engine, "POST", "/ovirt-engine/services/sso-logout", {
      as: null,
      headers: form,
      xml: new URLSearchParams({ scope: "ovirt-app-api", token: reply.json.access_token }).toString(),
    });
    expect([out.status, out.json]).toEqual([200, {}]);
    expect((await show()).status).toBe(401);
  });

  it("gives no token that outlives its time", async () => {
    const { json } = await logIn({ username: "admin@internal", password });
    await engine.sql("UPDATE ovirt_tokens SET expires_at = now() - interval '1 second'");
    const bearer = { authorization: `Bearer ${json.access_token}` };
    expect((await ask(engine, "GET", "/ovirt-engine/api", { as: null, headers: bearer })).status).toBe(401);
    await engine.setDue("forget-tokens");
    await engine.waitFor(async () => (await engine.sql("SELECT 1 FROM ovirt_tokens")).length === 0, {
      what: "expired tokens are removed",
      timeoutMs: 30_000,
    });
  });

  it("refuses a wrong password in the words that clients show", async () => {
    const reply = await logIn({ username: "admin@internal", password: "wrong" });
    expect([reply.status, reply.json]).toEqual([
      400,
      {
        error_code: "access_denied",
        error: "Cannot authenticate user 'admin@internal': The username or password is incorrect..",
      },
    ]);
    expect((await logIn({ username: "nobody@internal", password })).json.error_code).toBe("access_denied");
    expect((await logIn({ grant_type: "token", username: "admin@internal", password })).status).toBe(400);
  });

  it.each([
    null,
    basic("admin@internal", "wrong"),
    basic("nobody@internal"),
    "Basic",
    "Basic !!!",
    "Bearer",
    `Bearer ${"a".repeat(43)}`,
    "Negotiate abc",
  ])("answers %s with 401 and without a body", async (authorization) => {
    const headers = authorization === null ? {} : { authorization };
    const reply = await ask(engine, "GET", "/ovirt-engine/api/vms", { as: null, headers });
    expect([reply.status, reply.text, reply.headers["content-length"]]).toEqual([401, "", "0"]);
    expect(reply.headers["www-authenticate"]).toBe('Basic realm="RESTAPI"');
  });

  it("lets nobody guess passwords without end, and others in meanwhile", async () => {
    const wrong = () => logIn({ username: "guessed@internal", password: "guess" });
    const statuses = await Promise.all(Array.from({ length: 30 }, async () => (await wrong()).status));
    expect(new Set(statuses)).toEqual(new Set([400]));
    const refused = await wrong();
    expect([refused.status, Number(refused.headers["retry-after"]) > 0]).toEqual([429, true]);
    expect((await logIn({ username: "admin@internal", password })).status).toBe(200);
  });
});

describe("the entry point", () => {
  it("says what clients look for, in XML", async () => {
    const reply = await ask(engine, "GET", "/ovirt-engine/api");
    expect(reply.headers["content-type"]).toBe("application/xml;charset=UTF-8");
    expect(reply.headers["correlation-id"]).toMatch(/^[0-9a-f-]{36}$/);
    expect(reply.text).toContain('<link href="/ovirt-engine/api/vms" rel="vms"/>');
    expect(reply.text).toContain('<link href="/ovirt-engine/api/vms?search={query}" rel="vms/search"/>');
    expect(plain(reply.text)).toBe(`<api>
    <product_info>
        <instance_id>ID</instance_id>
        <name>oVirt Engine</name>
        <vendor>ovirt.org</vendor>
        <version>
            <build>7</build>
            <full_version>4.5.7-1.el9</full_version>
            <major>4</major>
            <minor>5</minor>
            <revision>0</revision>
        </version>
    </product_info>
    <special_objects>
        <blank_template href="/ovirt-engine/api/templates/ID" id="ID"/>
        <root_tag href="/ovirt-engine/api/tags/ID" id="ID"/>
    </special_objects>
    <summary>
        <hosts>
            <active>1</active>
            <total>1</total>
        </hosts>
        <vms>
            <active>0</active>
            <total>0</total>
        </vms>
    </summary>
    <time>TIME</time>
</api>`);
  });

  it("says the same in JSON: numbers as texts, times in milliseconds", async () => {
    const { json } = await ask(engine, "GET", "/ovirt-engine/api", { headers: jsonHeaders });
    expect(json).toMatchObject({
      product_info: { name: "oVirt Engine", version: { major: "4", minor: "5", build: "7", revision: "0" } },
      summary: { hosts: { active: "1", total: "1" } },
      time: expect.any(Number),
    });
    expect(json.link).toContainEqual({ href: "/ovirt-engine/api/vms", rel: "vms" });
  });

  it.each([
    ["/ovirt-engine/api", "/ovirt-engine/api", {}],
    ["/ovirt-engine/api/", "/ovirt-engine/api", {}],
    ["/ovirt-engine/api/v4", "/ovirt-engine/api/v4", {}],
    ["/ovirt-engine/api/v3", "/ovirt-engine/api/v3", {}],
    ["/api", "/api", {}],
    ["/api/v4", "/api/v4", {}],
    ["/ovirt-engine/api;max=1", "/ovirt-engine/api", { version: "3" }],
  ])("is at %s, with links that begin as the client's own", async (path, prefix, headers: Record<string, string>) => {
    const reply = await ask(engine, "GET", path, { headers });
    expect(reply.text).toContain(`<link href="${prefix}/vms" rel="vms"/>`);
  });

  it.each([
    ["/ovirt-engine/api/v5", {}],
    ["/ovirt-engine/api", { version: "2" }],
    ["/ovirt-engine/api", { version: "four" }],
  ])("has no other versions: %s %j is 400 without a body", async (path, headers: Record<string, string>) => {
    const reply = await ask(engine, "GET", path, { headers });
    expect([reply.status, reply.text]).toEqual([400, ""]);
  });

  it("answers HEAD", async () => {
    const reply = await ask(engine, "HEAD", "/ovirt-engine/api");
    expect([reply.status, reply.text, Number(reply.headers["content-length"]) > 1000]).toEqual([200, "", true]);
  });

  it.each([
    [undefined, "xml"],
    ["*/*", "xml"],
    ["application/json", "json"],
    ["text/html, application/xml;q=0.9", "xml"],
    ["application/xml;q=0.5, application/json", "json"],
    ["application/xml, application/json;q=0.1", "xml"],
  ])("answers to Accept: %s in %s", async (accept, format) => {
    const reply = await ask(engine, "GET", "/ovirt-engine/api", { headers: accept === undefined ? {} : { accept } });
    expect(reply.headers["content-type"]).toContain(`application/${format}`);
  });

  it("answers 406 where it has no such format, 404 and 405 without bodies", async () => {
    const statusOf = async (method: string, path: string, headers: Record<string, string> = {}) => {
      const reply = await ask(engine, method, path, { headers });
      return [reply.status, reply.text, reply.headers["content-length"]];
    };
    expect(await statusOf("GET", "/ovirt-engine/api", { accept: "text/html" })).toEqual([406, "", "0"]);
    expect(await statusOf("GET", "/ovirt-engine/api/nothing")).toEqual([404, "", "0"]);
    expect(await statusOf("GET", "/ovirt-engine/api/clusters/x")).toEqual([404, "", "0"]);
    expect(await statusOf("DELETE", "/ovirt-engine/api")).toEqual([405, "", "0"]);
    expect(await statusOf("GET", "/ovirt-engine/webadmin")).toEqual([404, "", "0"]);
  });

  it("repeats the client's correlation id, and makes one where it is none", async () => {
    const idOf = async (path: string, headers: Record<string, string> = {}) =>
      (await ask(engine, "GET", path, { headers })).headers["correlation-id"];
    expect(await idOf("/ovirt-engine/api", { "correlation-id": "backup 7" })).toBe("backup 7");
    expect(await idOf("/ovirt-engine/api?correlation_id=seven")).toBe("seven");
    expect(await idOf("/ovirt-engine/api", { "correlation-id": "x".repeat(51) })).toMatch(/^[0-9a-f-]{36}$/);
  });
});

describe("what surrounds machines", () => {
  it("is found as clients look for it", async () => {
    const reply = await ask(engine, "GET", "/ovirt-engine/api/datacenters?search=storage.name%3Dfiles");
    expect(plain(reply.text)).toBe(`<data_centers>
    <data_center href="/ovirt-engine/api/datacenters/ID" id="ID">
        <name>Default</name>
        <local>false</local>
        <quota_mode>disabled</quota_mode>
        <status>up</status>
        <storage_format>v5</storage_format>
        <version>
            <major>4</major>
            <minor>7</minor>
        </version>
    </data_center>
</data_centers>`);
    expect(plain((await ask(engine, "GET", "/ovirt-engine/api/clusters")).text)).toBe(`<clusters>
    <cluster href="/ovirt-engine/api/clusters/ID" id="ID">
        <name>Default</name>
        <cpu>
            <architecture>x86_64</architecture>
            <type>Secure Intel</type>
        </cpu>
        <version>
            <major>4</major>
            <minor>7</minor>
        </version>
        <data_center href="/ovirt-engine/api/datacenters/ID" id="ID"/>
    </cluster>
</clusters>`);
    const { json } = await ask(engine, "GET", "/ovirt-engine/api/storagedomains?search=name%3Dfiles", {
      headers: jsonHeaders,
    });
    expect(json.storage_domain).toHaveLength(1);
    expect(json.storage_domain[0]).toMatchObject({
      name: "files",
      master: "true",
      storage: { type: "posixfs" },
      type: "data",
      status: "active",
      data_centers: { data_center: [{ href: expect.any(String) }] },
    });
    const { href } = json.storage_domain[0];
    expect((await ask(engine, "GET", href)).status).toBe(200);
  });

  it("leads Ansible from a cluster's name to its data center, networks and templates", async () => {
    const found = async (path: string) =>
      (await ask(engine, "GET", `/ovirt-engine/api${path}`, { headers: jsonHeaders })).json;
    const centers = await found("/datacenters?search=Clusters.name%3DDefault");
    expect(centers.data_center.map(({ name }: { name: string }) => name)).toEqual(["Default"]);
    expect(await found("/datacenters?search=Clusters.name%3Dother")).toEqual({});
    const [cluster] = (await found("/clusters?search=name%3D%22Default%22")).cluster;
    const [networks] = cluster.link.filter(({ rel }: { rel: string }) => rel === "networks");
    const { json } = await ask(engine, "GET", networks.href, { headers: jsonHeaders });
    expect(json.network.map(({ name }: { name: string }) => name)).toEqual(["ovirtmgmt"]);
    const templates = await found("/templates?search=name%3DBlank%20and%20datacenter%3DDefault");
    expect(templates.template).toMatchObject([{ name: "Blank", version: { version_number: "1" } }]);
  });

  it("is written in version 3's form, too", async () => {
    const reply = await ask(engine, "GET", "/api/hosts");
    expect(plain(reply.text)).toBe(`<hosts>
    <host href="/api/hosts/ID" id="ID">
        <name>here</name>
        <address>here</address>
        <status>
            <state>up</state>
        </status>
        <type>ovirt_node</type>
        <cluster href="/api/clusters/ID" id="ID"/>
    </host>
</hosts>`);
  });

  it("is there one by one, and below what it belongs to", async () => {
    for (const name of ["datacenters", "clusters", "networks", "vnicprofiles", "hosts", "tags", "templates"]) {
      const { json } = await ask(engine, "GET", `/ovirt-engine/api/${name}`, { headers: jsonHeaders });
      const [[item]] = Object.values(json) as [{ href: string; link?: { href: string }[] }[]];
      expect((await ask(engine, "GET", item?.href ?? "")).status, name).toBe(200);
      for (const link of item?.link ?? []) expect((await ask(engine, "GET", link.href)).status, link.href).toBe(200);
    }
  });

  it("is an empty element where nothing is found", async () => {
    const path = "/ovirt-engine/api/jobs?search=correlation_id%3Dnone";
    expect(await ask(engine, "GET", path)).toMatchObject({ status: 200, text: `${declaration}<jobs/>\n` });
    expect((await ask(engine, "GET", path, { headers: jsonHeaders })).json).toEqual({});
  });

  it.each(["search=colour%3Dred", "search=%3D", "search=name%3D", "follow=nothing", "max=many", "case_sensitive=x"])(
    "refuses ?%s with 400",
    async (query) => {
      const reply = await ask(engine, "GET", `/ovirt-engine/api/clusters?${query}`);
      expect(reply.status).toBe(400);
      expect(plain(reply.text)).toMatch(
        /^<fault>\n {4}<detail>.*<\/detail>\n {4}<reason>Invalid value<\/reason>\n<\/fault>$/,
      );
    },
  );
});
