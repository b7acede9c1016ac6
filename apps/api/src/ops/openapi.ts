import { answers } from "@tephra/wire";
import { z } from "zod";
import { isPublic, type Rule, roleOf } from "../http/policy.ts";
import type { Action } from "../openstack/call.ts";
import { type Microversion, versionMax, versionText } from "../openstack/microversions.ts";
import type { Route } from "../openstack/serve.ts";
import type { OpsRoute } from "./serve.ts";

type Json = Readonly<Record<string, unknown>>;

/** Of a route of oVirt's API, what its description needs: method (`ACTION`: a POST), path behind `/ovirt-engine/api`, and rule. */
export type OvirtRouteHead = readonly [method: string, path: string, rule: Rule, ...handler: unknown[]];

/** The route tables of the service. */
export interface Tables {
  v3: readonly Route[];
  ops: readonly OpsRoute[];
  ovirt: readonly OvirtRouteHead[];
}

/** The schema of a request before transformation. Rules that JSON Schema cannot express are left out: the server decides. */
export function schemaOf(schema: z.ZodType): Json {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, {
    io: "input",
    unrepresentable: "any",
    override: ({ zodSchema, jsonSchema }) => {
      const { def } = zodSchema._zod;
      // The presence check that `required` puts before the real schema has no schema of its own.
      if (def.type !== "pipe" || def.in._zod.def.type !== "custom") return;
      Object.assign(jsonSchema, schemaOf(def.out as z.ZodType));
    },
  });
  return rest;
}

/** The body of an action that ignores everything but its name. */
const bareAction = (name: string): Json => ({ type: "object", properties: { [name]: {} }, required: [name] });

/** The newest body of an action, and the microversions at which it changed. `name`: its key, where one path has several actions. */
function bodyOf({ body, since = 0 }: Action, name: string | null): { schema: Json; changes: Microversion[] } | null {
  if (body === undefined) return name === null ? null : { schema: bareAction(name), changes: [] };
  const versions = Array.from({ length: versionMax - since }, (_, at) => since + at + 1);
  const changes = versions.filter((version) => body(version) !== body(version - 1));
  return { schema: schemaOf(body(versionMax)), changes };
}

const jsonOf = (schema: Json, description?: string): Json => ({
  ...(description && { description }),
  required: true,
  content: { "application/json": { schema } },
});

const fault = { $ref: "#/components/responses/Fault" };

/** Path parameters: `:id` → `{id}`. */
const templateOf = (path: string): string => path.replace(/:(\w+)/g, "{$1}");

const pathParameters = (path: string): Json[] =>
  [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => {
    const known = name === "project_id";
    return known
      ? { $ref: "#/components/parameters/ProjectId" }
      : { name, in: "path", required: true, schema: { type: "string" } };
  });

const idOf = (method: string, path: string): string =>
  [method.toLowerCase(), ...path.split(/[^\w]+/).filter(Boolean)].join("-");

function askedOf(rules: readonly Rule[]): string {
  const roles = [...new Set(rules.map(roleOf))];
  return `Asks for ${roles.map((role) => (role === "user" ? "any token" : `the role \`${role}\``)).join(" or ")}.`;
}

const versionsText = (versions: readonly Microversion[]): string => versions.map((v) => versionText(v)).join(", ");

/** One operation below `/v3`. The actions of a path are one operation with alternative bodies. */
function v3Operation(route: Route): { path: string; method: string; operation: Json } {
  const path = `/v3/{project_id}${templateOf(route[1])}`;
  const method = route[0] === "ACTION" ? "post" : route[0].toLowerCase();
  const actions =
    route[0] === "ACTION"
      ? Object.entries(route[2]).map(([name, [rule, action]]) => ({ name, rule, action }))
      : [{ name: null, rule: route[2], action: route[3] }];
  const rules = actions.map(({ rule }) => rule);
  const bodies = actions.flatMap(({ action, name }) => bodyOf(action, name) ?? []);
  const since = Math.min(...actions.map(({ action }) => action.since ?? 0));
  const changes = [...new Set(bodies.flatMap((body) => body.changes))].sort((x, y) => x - y);
  const schemas = bodies.map((body) => body.schema);
  const [schema] = schemas;
  const notes = [askedOf(rules), ...(since > 0 ? [`Since ${versionText(since)}.`] : [])];
  const operation = {
    operationId: idOf(method, route[1]),
    tags: [route[1].split("/")[1]],
    summary: rules.length === 1 ? rules[0] : Object.keys(route[2]).join(", "),
    description: notes.join(" "),
    parameters: [...pathParameters(path), { $ref: "#/components/parameters/Microversion" }],
    ...(schema && {
      requestBody: jsonOf(
        route[0] === "ACTION" ? { oneOf: schemas } : schema,
        changes.length > 0 ? `As of ${versionText(versionMax)}; it changed at ${versionsText(changes)}.` : "",
      ),
    }),
    responses: { "2XX": { $ref: "#/components/responses/Done" }, default: fault },
  };
  return { path, method, operation };
}

function queryParameters(query: z.ZodType): Json[] {
  const { properties = {}, required = [] } = schemaOf(query) as {
    properties?: Record<string, Json>;
    required?: string[];
  };
  return Object.entries(properties).map(([name, schema]) => ({
    name,
    in: "query",
    required: required.includes(name),
    schema,
  }));
}

/** Schemas that answers refer to by name, and those of the answers by route. */
function describeAnswers(): { schemas: Json; responses: Map<string, Json> } {
  const schemas: Record<string, unknown> = {};
  const responseOf = (status: string, schema: z.ZodType | null): Json => {
    const description = status.startsWith("2") ? "Done, or accepted" : "Not available";
    if (schema === null) return { description };
    const { $schema: _, $defs = {}, ...rest } = z.toJSONSchema(schema, { io: "input" });
    for (const [name, { id: _, ...named }] of Object.entries($defs)) schemas[name] = named;
    return { description, content: { "application/json": { schema: rest } } };
  };
  const responses = Object.entries(answers).map(([route, byStatus]): [string, Json] => [
    route,
    Object.fromEntries(Object.entries(byStatus).map(([status, schema]) => [status, responseOf(status, schema)])),
  ]);
  // The names of definitions stand in the document's components, not beside each schema.
  const inComponents = JSON.stringify({ schemas, responses }).replaceAll("#/$defs/", "#/components/schemas/");
  const moved = JSON.parse(inComponents) as { schemas: Json; responses: [string, Json][] };
  return { schemas: moved.schemas, responses: new Map(moved.responses) };
}

const described = describeAnswers();

function opsOperation([method, path, rule, action]: OpsRoute): { path: string; method: string; operation: Json } {
  const template = templateOf(path);
  const { body, query } = { body: undefined, query: undefined, ...action };
  const operation = {
    operationId: idOf(method, path),
    tags: ["tephra"],
    summary: rule === "public" ? path : rule,
    description: rule === "public" ? "Open to everybody." : askedOf([rule]),
    parameters: [...pathParameters(template), ...(query ? queryParameters(query) : [])],
    ...(body && { requestBody: jsonOf(schemaOf(body)) }),
    responses: {
      ...(described.responses.get(`${method} ${path}`) ?? { "2XX": { $ref: "#/components/responses/Done" } }),
      default: fault,
    },
    ...(isPublic(rule) && { security: [] }),
  };
  return { path: template, method: method.toLowerCase(), operation };
}

const ovirtBase = "/ovirt-engine/api";

const ovirtContent = {
  "application/xml": { schema: {} },
  "application/json": { schema: { type: "object" } },
};

/** One operation of oVirt's API: what its bodies have is in docs/ovirt.md. */
function ovirtOperation([name, path, rule]: OvirtRouteHead): { path: string; method: string; operation: Json } {
  const template = path === "/" ? ovirtBase : ovirtBase + templateOf(path);
  const method = name === "ACTION" ? "post" : name.toLowerCase();
  const operation = {
    operationId: idOf(method, template),
    tags: ["ovirt"],
    summary: `${method.toUpperCase()} ${path}`,
    description: askedOf([rule]),
    parameters: pathParameters(template),
    ...(method !== "get" && { requestBody: { required: false, content: ovirtContent } }),
    responses: {
      "2XX": { description: "Done, or accepted", content: ovirtContent },
      default: { description: "Refused, or failed: a fault", content: ovirtContent },
    },
    security: [{ password: [] }, { bearer: [] }],
  };
  return { path: template, method, operation };
}

/** What clients request before anything else (cinder-api 2.1). */
const discovery = (
  [
    ["/", "The versions of the API", { "300": { description: "One version" } }],
    ["/healthcheck", "Whether the process lives", { "200": { description: "OK" } }],
    ["/v3/", "The version that this is", { "200": { description: "One version" }, default: fault }],
  ] as const
).map(([path, summary, responses]) => ({
  path,
  method: "get",
  operation: {
    operationId: idOf("get", path) || "get",
    tags: ["discovery"],
    summary,
    responses,
    security: path === "/v3/" ? [{ token: [] }] : [],
  },
}));

const description = `Backups of block volumes, by OpenStack Cinder's v3 API and by routes of our own below \`/ops\`.
oVirt's API is at \`/ovirt-engine/api\` (version 4) and, with the same routes, at \`/api\` (version 3).
Every path of \`/v3\` exists also without \`/{project_id}\`. The microversion of a request is named in \`OpenStack-API-Version: volume X.Y\`;
bodies are shown as of the newest one, and what an older one lacks is refused there.`;

/** An OpenAPI 3.1 document of every route, generated from the schemas that validate request bodies and type the answers of `/ops`. */
export function openApiDocument({ v3, ops, ovirt }: Tables): Json {
  const paths: Record<string, Record<string, Json>> = {};
  const operations = [...v3.map(v3Operation), ...ops.map(opsOperation), ...ovirt.map(ovirtOperation)];
  for (const { path, method, operation } of [...discovery, ...operations]) {
    paths[path] = { ...paths[path], [method]: operation };
  }
  return {
    openapi: "3.1.0",
    info: { title: "Tephra", version: versionText(versionMax), description },
    servers: [{ url: "/" }],
    security: [{ token: [] }],
    paths,
    components: {
      securitySchemes: {
        token: { type: "apiKey", in: "header", name: "X-Auth-Token" },
        password: { type: "http", scheme: "basic" },
        bearer: { type: "http", scheme: "bearer" },
      },
      parameters: {
        ProjectId: {
          name: "project_id",
          in: "path",
          required: true,
          description: "The project of the token",
          schema: { type: "string", pattern: "^[0-9a-f-]+$" },
        },
        Microversion: {
          name: "OpenStack-API-Version",
          in: "header",
          description: "Without it the version is 3.0.",
          schema: { type: "string", examples: [`volume ${versionText(versionMax)}`, "volume latest"] },
        },
      },
      responses: {
        Done: { description: "Done, or accepted: what was asked for is in the body." },
        Fault: {
          description: "Refused, or failed: one key that names the kind of fault.",
          content: { "application/json": { schema: { $ref: "#/components/schemas/Fault" } } },
        },
      },
      schemas: {
        ...described.schemas,
        Fault: {
          type: "object",
          minProperties: 1,
          maxProperties: 1,
          additionalProperties: {
            type: "object",
            properties: { code: { type: "integer" }, message: { type: "string" }, retryAfter: { type: "string" } },
            required: ["code", "message"],
          },
        },
      },
    },
  };
}
