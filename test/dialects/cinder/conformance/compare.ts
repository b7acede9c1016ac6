import type { Answer, Names } from "./exchange.ts";

/** The headers that Cinder's answers are compared by. */
const comparedHeaders = [
  "content-type",
  "location",
  "openstack-api-version",
  "retry-after",
  "vary",
  "www-authenticate",
  "x-compute-request-id",
  "x-openstack-request-id",
];

/** What differs from run to run, or from driver to driver, gets the name that the recording has for it. */
export function normalise(answer: Answer, names: Names, base: string): Answer {
  const clean = (text: string): string =>
    names
      .hide(text)
      .replaceAll(base, "<base>")
      .replace(/Keystone uri=\\?"[^"\\]*\\?"/, 'Keystone uri="<keystone>"')
      .replace(/req-[0-9a-f-]{36}/g, "<request-id>")
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(?![\dZ])/g, "<tsT.6>")
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/g, "<tsTZ>")
      .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, "<uuid>");
  const headers = comparedHeaders.flatMap((name) => {
    const value = answer.headers[name];
    return value === undefined ? [] : [[name, clean(value)] as const];
  });
  return {
    status: answer.status,
    headers: Object.fromEntries(headers),
    body: mapStrings(openRecord(answer.body), clean),
  };
}

function mapStrings(value: unknown, clean: (text: string) => string): unknown {
  if (typeof value === "string") return clean(value);
  if (Array.isArray(value)) return value.map((item) => mapStrings(item, clean));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, mapStrings(item, clean)]));
}

/** An export record's URL is base64 of a JSON object, whose own names of drivers and hosts are no matter. */
function openRecord(body: unknown): unknown {
  const record = (body as { "backup-record"?: { backup_url?: unknown } } | null)?.["backup-record"];
  if (typeof record?.backup_url !== "string") return body;
  const fields = JSON.parse(Buffer.from(record.backup_url, "base64").toString("utf8")) as Record<string, unknown>;
  const opened = {
    ...fields,
    host: fields["host"] === null ? null : "<host>",
    service: fields["service"] === null ? null : "<service>",
    service_metadata: String(fields["service_metadata"]).replace(/\d{14}/, "<compact-ts>"),
  };
  return { "backup-record": { ...record, backup_service: "<service>", backup_url: { "<base64 json>": opened } } };
}

/**
 * Backups, wherever they stand in a body, without what is a matter of content and not of the API: how many objects the driver
 * made, the container that it chose, and the zone, which Zed left empty (docs/cinder-differences.md, "Availability zone of a backup").
 */
export function withoutContent(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutContent);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, item]) => [key, withoutContent(item)] as const);
  const object: Record<string, unknown> = Object.fromEntries(entries);
  if (typeof object["object_count"] !== "number") return object;
  const { container } = object;
  const chosen = typeof container === "string" && !container.startsWith("box-");
  return {
    ...object,
    object_count: Math.sign(object["object_count"]),
    container: chosen ? "<container>" : container,
    availability_zone: "<zone>",
  };
}

/** Keys and types, all the way down. */
export function shapeOf(value: unknown): unknown {
  if (value === null) return "null";
  if (Array.isArray(value)) return value.map(shapeOf);
  if (typeof value !== "object") return typeof value;
  const keys = Object.keys(value).sort();
  return Object.fromEntries(keys.map((key) => [key, shapeOf((value as Record<string, unknown>)[key])]));
}

/** The text of a fault in any of Cinder's envelopes; null where there is none. */
export function messageOf(body: unknown): string | null {
  if (typeof body !== "object" || body === null) return null;
  const own = (body as { message?: unknown }).message;
  if (typeof own === "string") return own;
  const [inner, ...others] = Object.values(body);
  return others.length === 0 ? messageOf(inner) : null;
}

/** What stands in answers for many values, or for any. */
const notNames = ["uuid", "zone", "container"];

/** Gives the run's values the names that a recorded answer has for them, where it is the first to mention them. */
export function learnNames(recorded: unknown, seen: unknown, names: Names): void {
  if (typeof recorded === "string" && typeof seen === "string") {
    const [, name] = /^<(\w+)>$/.exec(recorded) ?? [];
    if (name !== undefined && !notNames.includes(name) && !names.has(name)) names.set(name, seen);
    return;
  }
  if (typeof recorded !== "object" || recorded === null || typeof seen !== "object" || seen === null) return;
  for (const [key, value] of Object.entries(recorded)) {
    learnNames(value, (seen as Record<string, unknown>)[key], names);
  }
}
