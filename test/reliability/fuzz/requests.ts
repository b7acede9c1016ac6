import { z } from "zod";
import type { Route } from "../../../apps/api/src/openstack/serve.ts";
import type { OpsRoute } from "../../../apps/api/src/ops/serve.ts";
import { mutate, type Random } from "./random.ts";

/** A request as it goes out: `path` is percent-encoded, a header may be there several times. */
export interface FuzzRequest {
  method: string;
  path: string;
  headers: Record<string, string | string[]>;
  body: Buffer | null;
}

interface JsonSchema {
  type?: string | string[];
  properties?: Record<string, JsonSchema>;
  required?: string[];
  additionalProperties?: boolean | JsonSchema;
  anyOf?: JsonSchema[];
  enum?: unknown[];
  const?: unknown;
  items?: JsonSchema;
}

/** A route with everything that its bodies can be, by microversion. */
export interface Target {
  method: string;
  path: string;
  bodies: (minor: number) => JsonSchema[];
}

const schemaOf = (schema: z.ZodType): JsonSchema =>
  z.toJSONSchema(schema, { io: "input", unrepresentable: "any" }) as JsonSchema;

/** What there is to ask for, from the very tables and schemas that the service answers by. */
export function targetsOf(cinder: readonly Route[], ops: readonly OpsRoute[]): Target[] {
  const v3 = cinder.map((route): Target => {
    const actions = route[0] === "ACTION" ? Object.values(route[2]).map(([, action]) => action) : [route[3]];
    return {
      method: route[0] === "ACTION" ? "POST" : route[0],
      path: `/v3/{project}${route[1]}`,
      bodies: (minor) => actions.flatMap((action) => (action.body ? [schemaOf(action.body(minor))] : [])),
    };
  });
  return [...v3, ...ops.map(([method, path]): Target => ({ method, path, bodies: () => [] }))];
}

const pick = <T>(random: Random, items: readonly T[]): T => items[random.below(items.length)] as T;
const chance = (random: Random, outOf: number): boolean => random.below(outOf) === 0;

export const junkTexts = [
  "",
  " ",
  "name",
  "available",
  "nova",
  "../../etc",
  "/etc/passwd",
  "a".repeat(255),
  "a".repeat(256),
  "\u0000",
  "\u0007\u001b[31m",
  "\u{1f600}",
  "\ud800",
  "\u200b",
  "'; DROP TABLE backups; --",
  "%",
  "_%_",
  "__proto__",
  "constructor",
  "toString",
  "true",
  "0",
  "-1",
  "1e400",
  "99999999999999999999",
  "created_at:asc",
  "name:desc,size",
] as const;
const texts = junkTexts;

const scalars = [null, true, false, 0, 1, -1, 1.5, 1e300, 2 ** 53, -(2 ** 31), ...texts] as const;

/** Any JSON at all, sometimes nested deeper than any stack. */
function junk(random: Random, ids: readonly string[], depth = 0): unknown {
  if (depth > 3 || chance(random, 2)) return chance(random, 4) ? pick(random, ids) : pick(random, scalars);
  const size = random.below(4);
  if (chance(random, 2)) return Array.from({ length: size }, () => junk(random, ids, depth + 1));
  return Object.fromEntries(
    Array.from({ length: size }, () => [pick(random, texts), junk(random, ids, depth + 1)] as const),
  );
}

/** A value that mostly fits, with junk here and there. */
function valueFor(schema: JsonSchema, random: Random, ids: readonly string[]): unknown {
  if (chance(random, 12)) return junk(random, ids);
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return pick(random, schema.enum);
  if (schema.anyOf) return valueFor(pick(random, schema.anyOf), random, ids);
  const type = Array.isArray(schema.type) ? pick(random, schema.type) : schema.type;
  switch (type) {
    case "object":
      return objectFor(schema, random, ids);
    case "array":
      return Array.from({ length: random.below(4) }, () => valueFor(schema.items ?? {}, random, ids));
    case "string":
      return chance(random, 2) ? pick(random, ids) : pick(random, texts);
    case "boolean":
      return chance(random, 2);
    case "integer":
    case "number":
      return chance(random, 4) ? pick(random, scalars) : random.below(4);
    case "null":
      return null;
    default:
      return junk(random, ids);
  }
}

function objectFor(schema: JsonSchema, random: Random, ids: readonly string[]): unknown {
  const { properties = {}, required = [], additionalProperties: more } = schema;
  const kept = Object.entries(properties).filter(([key]) =>
    required.includes(key) ? !chance(random, 20) : chance(random, 2),
  );
  const entries = kept.map(([key, inner]) => [key, valueFor(inner, random, ids)] as const);
  const extra = typeof more === "object" ? random.below(3) : chance(random, 10) ? 1 : 0;
  const extras = Array.from(
    { length: extra },
    () => [pick(random, texts), typeof more === "object" ? valueFor(more, random, ids) : junk(random, ids)] as const,
  );
  // From entries, so that `__proto__` is a key like any other and is written out.
  return Object.fromEntries([...entries, ...extras]);
}

const queryKeys = [
  "limit",
  "offset",
  "marker",
  "sort",
  "sort_key",
  "sort_dir",
  "all_tenants",
  "with_count",
  "name",
  "name~",
  "status",
  "status~",
  "volume_id",
  "volume_id~",
  "size",
  "size~",
  "created_at",
  "created_at~",
  "project_id",
  "metadata",
  "usage",
  "resource",
  "host",
  "cascade",
  "force",
  ...texts,
] as const;

function queryOf(random: Random, ids: readonly string[]): string {
  if (chance(random, 3)) return "";
  const pairs = Array.from({ length: random.below(5) }, () => {
    const value = chance(random, 3) ? pick(random, ids) : pick(random, texts);
    return `${encoded(pick(random, queryKeys))}=${chance(random, 15) ? "%zz%" : encoded(value)}`;
  });
  return pairs.length === 0 ? "" : `?${pairs.join("&")}`;
}

const encoded = (text: string): string => encodeURIComponent(text.toWellFormed());

function pathOf(target: Target, random: Random, project: string, ids: readonly string[]): string {
  const owner = chance(random, 10) ? "" : `/${chance(random, 20) ? "deadbeef" : project}`;
  const filled = target.path
    .replace("/{project}", owner)
    .replace(/:\w+/g, () => encoded(chance(random, 4) ? pick(random, texts) || "x" : pick(random, ids)));
  const suffix = chance(random, 20) ? pick(random, [".json", ".xml", "/", "/edit", "//", "/..;/", "%2f"]) : "";
  return `${filled}${suffix}${queryOf(random, ids)}`;
}

function headersOf(random: Random, minor: number): FuzzRequest["headers"] {
  const version = chance(random, 12)
    ? pick(random, ["volume", "volume latest", "volume 3.999", "compute 2.1", "volume 3.", "volume 3.0 3.1", ","])
    : `volume 3.${minor}`;
  const headers: FuzzRequest["headers"] = { "openstack-api-version": version, accept: "application/json" };
  if (chance(random, 15)) headers["openstack-api-version"] = [version, "volume 3.1"];
  if (chance(random, 15)) headers["x-forwarded-host"] = pick(random, ["a,b", ",", "x".repeat(4000), '"><script>']);
  if (chance(random, 15)) headers["x-auth-token"] = pick(random, ["user:project", ":", "a b", "x".repeat(5000)]);
  if (chance(random, 60)) headers["content-encoding"] = pick(random, ["gzip", "deflate", "br", "x"]);
  if (chance(random, 15)) headers["x-openstack-request-id"] = pick(random, ["req-x", "a".repeat(300)]);
  return headers;
}

function bodyOf(target: Target, random: Random, minor: number, ids: readonly string[]): Buffer | null {
  const schemas = target.bodies(minor);
  if (schemas.length === 0 && !chance(random, 10)) return null;
  if (chance(random, 30)) return null;
  if (chance(random, 200)) return Buffer.from("[".repeat(50_000));
  if (chance(random, 400)) return Buffer.from(JSON.stringify({ backup: "x".repeat(120_000) }));
  const value = schemas.length === 0 ? junk(random, ids) : valueFor(pick(random, schemas), random, ids);
  const text = Buffer.from(JSON.stringify(value) ?? "null");
  return chance(random, 10) ? mutate([text], random) : text;
}

/** One request; `ids` are worth asking about. It depends on nothing but its arguments. */
export function randomRequest(
  targets: readonly Target[],
  random: Random,
  { project, ids }: { project: string; ids: readonly string[] },
): FuzzRequest {
  const target = pick(random, targets);
  const minor = random.below(72);
  const headers = headersOf(random, minor);
  const body = bodyOf(target, random, minor, ids);
  const types = ["text/plain", "application/json; charset=utf-16", "application/vnd.openstack.volume+json", "x"];
  if (body !== null) headers["content-type"] = chance(random, 15) ? pick(random, types) : "application/json";
  const method = chance(random, 40) ? pick(random, ["PATCH", "HEAD", "OPTIONS", "TRACE", "PUT"]) : target.method;
  return { method, path: pathOf(target, random, project, ids), headers, body };
}
