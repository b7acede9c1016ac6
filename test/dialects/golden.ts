import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import type { Instance, Reply } from "../kit/instance.ts";

/**
 * Whole answers against files in `golden/`. Ids, times and the base URL are replaced; everything else is compared: status, the headers
 * that clients look at, every key and text of the body.
 *
 * `UPDATE_GOLDEN=1 npx vitest run test/dialects` writes the files anew; read the difference before you commit it.
 */
export interface Golden {
  /** Sends a request, keeps its answer under `name`, and returns it. Names say what is asked and of whom. */
  ask(name: string, method: string, path: string, options?: AskOptions): Promise<Reply>;
  /** Compares everything that was kept with the file. */
  check(): void;
}

export interface AskOptions {
  body?: unknown;
  /** The minor number of the microversion. */
  version?: number;
  headers?: Record<string, string>;
}

const keptHeaders = [
  "content-type",
  "openstack-api-version",
  "vary",
  "x-compute-request-id",
  "x-openstack-request-id",
  "location",
  "retry-after",
  "www-authenticate",
  "content-security-policy",
];

const updating = process.env["UPDATE_GOLDEN"] === "1";

/** Every request that some golden file of this run has asked: method and path, normalised. */
export function goldenRequests(): string[] {
  const files = [
    "discovery",
    "backups",
    "volumes",
    "volume-changes",
    "snapshots",
    "quotas",
    "services",
    "records",
    "limits",
    "bad-input",
    "tenants",
    "ops",
    "policies",
    "instances",
    "instance-groups",
    "groups",
    "dashboard",
  ];
  return files.flatMap((file) => {
    const answers = JSON.parse(readFileSync(fileOf(file), "utf8")) as Record<string, { request: string }>;
    return Object.values(answers).map((answer) => answer.request);
  });
}

const fileOf = (name: string): string => new URL(`golden/${name}.json`, import.meta.url).pathname;

/** Replaces what differs from run to run; the same id gets the same name all over a file. */
function normaliser(instance: Instance): (text: string) => string {
  const ids = new Map<string, string>();
  const nameOf = (id: string): string => {
    const known = ids.get(id) ?? `<id-${ids.size + 1}>`;
    ids.set(id, known);
    return known;
  };
  return (text) =>
    text
      .replaceAll(instance.url, "<base>")
      .replaceAll(instance.dataDir, "<data>")
      .replace(/("auth_key":\s*")[0-9a-f]{32}"/g, '$1<key>"')
      .replace(/("next":\s*")\d+-\d+"/g, '$1<cursor>"')
      .replace(/req-[0-9a-f-]{36}/g, "<request-id>")
      .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, nameOf)
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?![.\d])/g, "<time>")
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(?![\dZ])/g, "<time.6>")
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, "<time.3Z>");
}

export function openGolden(instance: Instance, file: string): Golden {
  const answers: Record<string, unknown> = {};
  const normalise = normaliser(instance);
  const clean = (value: unknown): unknown => JSON.parse(normalise(JSON.stringify(value)));
  return {
    ask: async (name, method, path, { body, version, headers = {} } = {}) => {
      if (answers[name] !== undefined) throw new Error(`two answers are called ${name}`);
      const asked = version === undefined ? {} : { "openstack-api-version": `volume 3.${version}` };
      const reply = await instance.request(method, path, body, { ...asked, ...headers });
      const kept = keptHeaders.filter((h) => reply.headers.has(h)).map((h) => [h, reply.headers.get(h)]);
      answers[name] = clean({
        request: `${method} ${path}${version === undefined ? "" : ` @3.${version}`}`,
        ...(body !== undefined && {
          sent: typeof body === "string" && body.length > 1000 ? `${body.length} characters` : body,
        }),
        status: reply.status,
        headers: Object.fromEntries(kept),
        body: reply.body ?? reply.text,
      });
      return reply;
    },
    check: () => {
      const text = `${JSON.stringify(answers, null, 2)}\n`;
      if (updating) writeFileSync(fileOf(file), text);
      if (!existsSync(fileOf(file))) throw new Error(`golden/${file}.json is missing: run with UPDATE_GOLDEN=1`);
      // As text, so that the order of keys counts, too.
      expect(text).toBe(readFileSync(fileOf(file), "utf8"));
    },
  };
}
