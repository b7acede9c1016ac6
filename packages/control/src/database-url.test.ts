import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DatabaseUrlError, fixedSettings, inDatabase, parseDatabaseUrl } from "./database-url.ts";

const refusal = (url: string): string => {
  try {
    parseDatabaseUrl(url);
  } catch (error) {
    if (error instanceof DatabaseUrlError) return error.message;
    throw error;
  }
  return "";
};
const of = (query: string) => parseDatabaseUrl(`postgresql://u@h/d?${query}`);

/** Every keyword of libpq 18 and every addition of Prisma and node-postgres, with a plausible value. */
const parameters: Readonly<Record<string, readonly string[]>> = {
  host: ["a,b", "/run/postgresql", "::1"],
  hostaddr: ["127.0.0.1"],
  port: ["1,2", "5433", "0", "x"],
  dbname: ["other"],
  user: ["somebody"],
  password: ["se%20cret-word"],
  passfile: ["/root/.pgpass"],
  require_auth: ["scram-sha-256"],
  channel_binding: ["disable", "prefer", "require"],
  connect_timeout: ["0", "10", "-1", "soon"],
  client_encoding: ["UTF8", "LATIN1"],
  options: [
    "-c%20search_path%3Dapp",
    "-csearch_path=app,public",
    "-c%20TimeZone%3DAsia/Kolkata",
    "--statement-timeout=5",
    "-d",
  ],
  application_name: ["backup"],
  fallback_application_name: ["backup"],
  keepalives: ["0", "1", "2"],
  keepalives_idle: ["30"],
  keepalives_interval: ["3"],
  keepalives_count: ["3"],
  tcp_user_timeout: ["3"],
  replication: ["database"],
  gssencmode: ["disable", "prefer", "require"],
  sslmode: ["disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify"],
  requiressl: ["1"],
  sslnegotiation: ["postgres", "direct"],
  sslcompression: ["0", "1"],
  sslcert: ["/c"],
  sslkey: ["/k"],
  sslkeylogfile: ["/l"],
  sslpassword: ["word"],
  sslcertmode: ["disable", "allow", "require"],
  sslrootcert: ["/ca", "system"],
  sslcrl: ["/crl"],
  sslcrldir: ["/crls"],
  sslsni: ["0", "1"],
  requirepeer: ["postgres"],
  ssl_min_protocol_version: ["TLSv1.2", "SSLv3"],
  ssl_max_protocol_version: ["TLSv1.3"],
  min_protocol_version: ["3.2"],
  max_protocol_version: ["latest"],
  krbsrvname: ["postgres"],
  gsslib: ["gssapi"],
  gssdelegation: ["1"],
  scram_client_key: ["x"],
  scram_server_key: ["x"],
  service: ["prod"],
  servicefile: ["/s"],
  target_session_attrs: ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"],
  load_balance_hosts: ["disable", "random", "maybe"],
  oauth_issuer: ["x"],
  oauth_client_id: ["x"],
  schema: ["app", "App%22s"],
  pgbouncer: ["true", "false", "1"],
  connection_limit: ["5"],
  pool_timeout: ["5"],
  socket_timeout: ["5"],
  statement_cache_size: ["0"],
  sslidentity: ["/p12"],
  sslaccept: ["strict"],
  ssl: ["true"],
  uselibpqcompat: ["true"],
  __proto__: ["x"],
  Schema: ["app"],
};

describe("DATABASE_URL", () => {
  it("has the meaning that libpq gives it", () => {
    expect(parseDatabaseUrl("postgresql://u%40x:p%3A%2F@[::1]:6000,db2/na%20me")).toMatchObject({
      hosts: [
        { host: "::1", port: 6000 },
        { host: "db2", port: 5432 },
      ],
      ...{ user: "u@x", password: "p:/", database: "na me", schema: "public" },
      ssl: { mode: "prefer" },
      ...{ connectTimeoutMs: null, keepAlive: true, writable: false, pooled: false },
    });
    expect(parseDatabaseUrl("postgres://%2Frun%2Fpg/d").hosts).toEqual([{ host: "/run/pg", port: 5432 }]);
    expect(parseDatabaseUrl("postgresql:///d?host=a,b&port=1,2").hosts).toEqual([
      { host: "a", port: 1 },
      { host: "b", port: 2 },
    ]);
    expect(parseDatabaseUrl("postgresql://")).toMatchObject({ hosts: [{ host: "localhost", port: 5432 }] });
    expect(of("connect_timeout=1").connectTimeoutMs).toBe(2_000);
    expect(of("user=x&dbname=y")).toMatchObject({ user: "x", database: "y" });
  });

  it("names one schema for every reader", () => {
    expect(of("schema=app")).toMatchObject({ schema: "app", settings: { search_path: '"app"' } });
    expect(of("options=-c%20search_path%3DApp,%5C%20%22B%22%22x%22")).toMatchObject({
      schema: "app",
      settings: { search_path: '"app", "B""x"' },
    });
    expect(of("options=-c%20search_path%3Dapp%20-c%20work_mem%3D8MB&schema=app").settings).toMatchObject({
      work_mem: "8MB",
    });
    expect(refusal("postgresql://h/d?schema=a&options=-csearch_path=b")).toContain("schema");
    expect(refusal("postgresql://h/d?options=-csearch_path=%22$user%22,public")).toContain("$user");
  });

  it.each(Object.keys(fixedSettings))("cannot set %s", (name) => {
    expect(refusal(`postgresql://h/d?options=-c%20${name.toUpperCase()}%3Dx`)).toContain(name);
  });

  it("is obeyed in every parameter, or refused with the parameter's name and without its value", {
    timeout: 60_000,
  }, () => {
    const one = fc
      .constantFrom(...Object.keys(parameters))
      .chain((name) => fc.tuple(fc.constant(name), fc.constantFrom(...(parameters[name] ?? []))));
    const plain = JSON.stringify(parseDatabaseUrl("postgresql://u@h/d"));
    // A parameter without effect was already the default, or has only one possible value.
    const idle =
      /^(sslmode=prefer|sslnegotiation=postgres|sslcompression=0|sslsni=1|client_encoding=UTF8|gssencmode=.*|channel_binding=prefer)$/;
    const idler =
      /^(keepalives=1|connect_timeout=(0|-1)|load_balance_hosts=disable|target_session_attrs=any|pgbouncer=false|sslcertmode=(disable|allow))$/;
    fc.assert(
      fc.property(one, ([name, value]) => {
        const url = `postgresql://u@h/d?${name}=${value}`;
        const refused = refusal(url);
        if (refused !== "") {
          expect(refused).toContain(name);
          expect(refused).not.toContain("cret");
          return;
        }
        if (idle.test(`${name}=${value}`) || idler.test(`${name}=${value}`)) return;
        expect(JSON.stringify(parseDatabaseUrl(url)), `${name} changes something`).not.toBe(plain);
      }),
      { numRuns: 500 },
    );
  });

  it("is read or refused whatever stands in it, and never shows the password", { timeout: 60_000 }, () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 60 }), (text) => {
        for (const url of [text, `postgresql://${text}`, `postgresql://u:zxqsecret@h/d?${text}`]) {
          expect(refusal(url)).not.toContain("zxqsecret");
        }
      }),
      { numRuns: 200 },
    );
  });

  it("leads to another database of the same server", () => {
    const url = "postgresql://u:p%40@a:1,b:2/d?dbname=e&sslmode=require";
    expect(parseDatabaseUrl(inDatabase(url, "o/x"))).toEqual({
      ...parseDatabaseUrl("postgresql://u:p%40@a:1,b:2/?sslmode=require"),
      database: "o/x",
    });
  });
});
