import { Validator } from "@seriousme/openapi-schema-validator";
import { answers } from "@tephra/wire";
import { afterAll, beforeAll, expect, it } from "vitest";
import { opsRoutes, v3Routes } from "../../../apps/api/src/app.ts";
import { ovirtRoutes } from "../../../apps/api/src/ovirt/routes.ts";
import type { Instance } from "../../kit/instance.ts";
import { startApiOnly } from "../api-only.ts";

let instance: Instance;
beforeAll(async () => {
  instance = await startApiOnly();
});
afterAll(() => instance[Symbol.asyncDispose]());

const documentOf = async () => {
  const { status, body } = await instance.request("GET", "/openapi.json");
  expect(status).toBe(200);
  return body;
};

it("serves a valid OpenAPI 3.1 document", async () => {
  const document = await documentOf();
  expect(document.openapi).toBe("3.1.0");
  const validator = new Validator();
  const { valid, errors } = await validator.validate(document);
  expect(errors).toBeUndefined();
  expect(valid).toBe(true);
  expect(validator.version).toBe("3.1");
  const operations = Object.values(document.paths).flatMap((path) => Object.values(path as object));
  const ids = operations.map((operation) => operation.operationId);
  expect(ids).toHaveLength(new Set(ids).size);
});

it("describes every route and no other, each with its body, its actions and whether it needs a token", async () => {
  const { paths } = await documentOf();
  const described = Object.entries(paths).flatMap(([path, operations]) =>
    Object.keys(operations as object).map((method) => `${method.toUpperCase()} ${path}`),
  );
  const template = (path: string) => path.replace(/:(\w+)/g, "{$1}");
  const discovery = ["GET /", "GET /healthcheck", "GET /v3/"];
  const routes = [
    ...v3Routes.map(([method, path]) => `${method === "ACTION" ? "POST" : method} /v3/{project_id}${template(path)}`),
    ...opsRoutes.map(([method, path]) => `${method} ${template(path)}`),
    ...ovirtRoutes.map(([method, path]) => {
      return `${method === "ACTION" ? "POST" : method} /ovirt-engine/api${path === "/" ? "" : template(path)}`;
    }),
  ];
  expect(described.sort()).toEqual([...discovery, ...routes].sort());

  for (const route of v3Routes) {
    const operation =
      paths[`/v3/{project_id}${template(route[1])}`][route[0] === "ACTION" ? "post" : route[0].toLowerCase()];
    const schema = operation.requestBody?.content["application/json"].schema;
    if (route[0] === "ACTION") {
      const names = schema.oneOf.flatMap((one: { required: string[] }) => one.required);
      expect(names, route[1]).toEqual(Object.keys(route[2]));
    } else {
      expect(schema !== undefined, route[1]).toBe(route[3].body !== undefined);
    }
  }
  for (const [method, path, rule] of opsRoutes) {
    const { security } = paths[template(path)][method.toLowerCase()];
    expect(security, path).toEqual(rule === "public" ? [] : undefined);
  }
});

it("shows a body as its schema has it", async () => {
  const { paths } = await documentOf();
  const { requestBody } = paths["/v3/{project_id}/backups"].post;
  expect(requestBody.description).toBe("As of 3.71; it changed at 3.43, 3.51.");
  const { backup } = requestBody.content["application/json"].schema.properties;
  expect(backup).toMatchObject({ type: "object", required: ["volume_id"], additionalProperties: false });
  expect(Object.keys(backup.properties).sort()).toEqual(
    [
      "volume_id",
      "container",
      "description",
      "incremental",
      "force",
      "name",
      "snapshot_id",
      "metadata",
      "availability_zone",
    ].sort(),
  );
  const { snapshot } =
    paths["/v3/{project_id}/snapshots"].post.requestBody.content["application/json"].schema.properties;
  expect(snapshot.properties.volume_id).toEqual({ anyOf: [{ type: "string", format: "uuid" }, { type: "null" }] });
  expect(backup.properties.volume_id).toEqual({ type: "string", format: "uuid" });
  expect(backup.properties.name).toEqual({ anyOf: [{ type: "string", maxLength: 255 }, { type: "null" }] });
});

it("describes the answers of our own routes by the schemas that type them", async () => {
  const { paths, components } = await documentOf();
  for (const [route, byStatus] of Object.entries(answers)) {
    const [method = "", path = ""] = route.split(" ");
    const { responses } = paths[path.replace(/:(\w+)/g, "{$1}")][method.toLowerCase()];
    expect(Object.keys(responses), route).toEqual([...Object.keys(byStatus), "default"]);
  }
  const undescribed = opsRoutes
    .map(([method, path]) => `${method} ${path}`)
    .filter((route) => route.includes(" /ops/") && !(route in answers));
  expect(undescribed).toEqual([]);
  const { schema } = paths["/ops/operations/{id}"].get.responses["200"].content["application/json"];
  expect(schema.properties.operation).toEqual({ $ref: "#/components/schemas/OperationDetails" });
  expect(components.schemas.Operation.properties.state.enum).toContain("running");
});

it("has a page to read it that loads nothing from elsewhere", async () => {
  const page = await instance.request("GET", "/docs/");
  expect(page.status).toBe(200);
  expect(page.headers.get("content-type")).toBe("text/html; charset=utf-8");
  expect(page.headers.get("content-security-policy")).toContain("default-src 'none'; script-src 'self'");
  const loaded = [...page.text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, url]) => String(url));
  expect(loaded).toEqual(["data:,", "swagger-ui.css", "swagger-ui-bundle.js", "start.js"]);
  for (const name of loaded.slice(1)) {
    const file = await instance.request("GET", `/docs/${name}`);
    expect(file.status, name).toBe(200);
    expect(file.text.length, name).toBeGreaterThan(100);
  }
  const start = await instance.request("GET", "/docs/start.js");
  expect(start.text).toContain('url: "/openapi.json"');
});
