import { mutate, type Random } from "./random.ts";
import { type FuzzRequest, junkTexts } from "./requests.ts";

/** What there is to ask for: a route of the table, with ids in its path, and good bodies for it, as XML. */
export interface OvirtTarget {
  method: string;
  path: string;
  bodies: readonly string[];
}

const pick = <T>(random: Random, items: readonly T[]): T => items[random.below(items.length)] as T;
const chance = (random: Random, outOf: number): boolean => random.below(outOf) === 0;

const texts = [
  ...junkTexts,
  "18446744073709551616",
  "9223372036854775807",
  "-9223372036854775808",
  "1048576",
  "NaN",
  "yes",
  "TRUE",
  "cow",
  "upload",
  "download",
  "]]>",
  "&amp;lt;",
  "name=*",
  "a".repeat(5_000),
];

const encoded = (text: string): string => encodeURIComponent(text.toWellFormed());

const prefixes = [
  "/ovirt-engine/api",
  "/ovirt-engine/api",
  "/api",
  "/ovirt-engine/api/v4",
  "/ovirt-engine/api/v3",
  "/api/v4",
  "//api",
  "/ovirt-engine//api",
  "/api;max=1",
  "/api/v9",
  "/ovirt-engine",
  "/API",
];

const names = [
  "search",
  "max",
  "follow",
  "async",
  "case_sensitive",
  "all_content",
  "correlation_id",
  "detach_only",
  "detach",
  "reassign_bad_macs",
  "from",
  "filter",
  "current",
  "__proto__",
  "",
];

const values = [
  ...texts,
  "name=vm*",
  'name="a b" and status!=up or secret',
  "sortby name desc page 2",
  "sortby",
  "page 999999999",
  'name="',
  "=",
  "!=",
  "name=",
  `name=${"*".repeat(2_000)}`,
  `${"a=b and ".repeat(200)}c`,
  "constructor=a",
  "correlation_id=x",
  "disk_attachments.disk,nics.reporteddevices,tags",
  "a.b.c.d.e",
  "nics.",
  ",,,",
  "__proto__",
  "true",
  "false",
  "-5",
  "0",
  "99999999999",
];

const separators = [";", "%3B", "?", "&"];

function parametersOf(random: Random): string {
  if (chance(random, 2)) return "";
  return Array.from({ length: 1 + random.below(4) }, () => {
    const value = chance(random, 20) ? "%zz%" : encoded(pick(random, values));
    return `${pick(random, separators)}${pick(random, names)}${chance(random, 8) ? "" : "="}${value}`;
  }).join("");
}

const uuid = /[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g;

function pathOf(target: OvirtTarget, random: Random, ids: readonly string[]): string {
  const filled = target.path.replace(uuid, (id) => {
    if (!chance(random, 6)) return id;
    return encoded(chance(random, 2) ? pick(random, texts) || "x" : pick(random, ids));
  });
  const prefix = chance(random, 5) ? pick(random, prefixes) : pick(random, prefixes.slice(0, 3));
  const suffix = chance(random, 20) ? pick(random, ["/", "//", "/..", "/%2e%2e/", "/edit", "%00", "%2f", "/;"]) : "";
  return `${prefix}${filled}${suffix}${parametersOf(random)}`;
}

const doctype = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>';

/** Of a billion laughs, in as many levels as they need. */
const laughs = (): string => {
  const levels = Array.from({ length: 9 }, (_, at) => `<!ENTITY l${at + 1} "${`&l${at};`.repeat(10)}">`);
  return `<!DOCTYPE a [<!ENTITY l0 "lol">${levels.join("")}]><a>&l9;</a>`;
};

/** Bodies that are meant to do harm. Those of many bytes come seldom. */
const hostile: readonly (() => string | Buffer)[] = [
  laughs,
  () => `${doctype}<vm><name>&x;</name></vm>`,
  () => '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/evil.dtd"><a/>',
  () => '<?xml version="1.0" encoding="UTF-16"?><vm/>',
  () => '<?xml-stylesheet href="http://127.0.0.1:9/"?><vm/>',
  () => Buffer.from(`\ufeff<vm><name>a</name></vm>`),
  () => Buffer.from("<vm><name>a</name></vm>", "utf16le"),
  () => Buffer.from([0x3c, 0x76, 0x6d, 0x3e, 0xff, 0xfe, 0x3c, 0x2f, 0x76, 0x6d, 0x3e]),
  () => "<vm><name>&#0;&#x1F;&#xD800;&#1114112;</name></vm>",
  () => '<vm xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="file:///etc/passwd" parse="text"/></vm>',
  () => "<vm><name><![CDATA[]]]]><![CDATA[>]]></name></vm>",
  () => "<vm/><vm/>",
  () => "<vm><name>a</vm></name>",
  () => '<vm id="a" id="b"/>',
  () => '<__proto__ id="constructor"><constructor/><__proto__/></__proto__>',
  () => `${"<a>".repeat(100)}${"</a>".repeat(100)}`,
  () => '{"__proto__": {"id": "a"}, "constructor": {"prototype": {}}, "disk": {"id": {"id": []}}}',
  () => '{"name": null, "disk": [], "cluster": [{"name": [["Default"]]}]}',
  () => '{"provisioned_size": 1e999, "memory": -0, "format": ["raw", "cow"]}',
  () => '{"name": "\\ud800", "description": "\\u0000"}',
  () => "[".repeat(50_000),
  () => "null",
];
const large: readonly (() => string)[] = [
  () => "<a>".repeat(20_000),
  () => `<vm>${"<nic/>".repeat(120_000)}</vm>`,
  () => `<vm ${'a="b" '.repeat(50_000)}/>`,
  () => `<vm><name>${"x".repeat(3_000_000)}</name></vm>`,
  () => `<vm>${"&amp;".repeat(500_000)}</vm>`,
  () => `<vm><!--${"-".repeat(10)} ${"x".repeat(1_000_000)}--></vm>`,
  () => "x".repeat(9_000_000),
  () => `{"name": "${"x".repeat(3_000_000)}"}`,
  () => `{"disk": [${'{"id": "a"},'.repeat(120_000)}{}]}`,
];

/** The same content in JSON, where the body is a plain one: elements become names, attributes too. */
function jsonOf(xml: string, random: Random): string {
  const fields = [...xml.matchAll(/<(\w+)(?: id="([^"]*)")?[^>]*>([^<]*)/g)].slice(1);
  return JSON.stringify(
    Object.fromEntries(
      fields.map(([, name = "", id, text = ""]) => {
        const value = id === undefined ? text : { id };
        return [name, chance(random, 8) ? [value] : chance(random, 8) ? pick(random, texts) : value];
      }),
    ),
  );
}

/** Text or attributes are replaced in what is otherwise a good body. */
const withJunk = (xml: string, random: Random, ids: readonly string[]): string =>
  xml.replace(/>([^<]+)<|"([^"]*)"/g, (whole) => {
    if (!chance(random, 4)) return whole;
    const text = (chance(random, 3) ? pick(random, ids) : pick(random, texts)).replace(/[<>"&\0]/g, "");
    return whole.startsWith(">") ? `>${text}<` : `"${text}"`;
  });

function bodyOf(target: OvirtTarget, random: Random, ids: readonly string[]): { body: Buffer; isJson: boolean } | null {
  if (target.bodies.length === 0 && !chance(random, 10)) return null;
  if (chance(random, 200)) return { body: Buffer.from(pick(random, large)()), isJson: chance(random, 2) };
  if (chance(random, 10)) return { body: Buffer.from(pick(random, hostile)() as Buffer), isJson: chance(random, 3) };
  const good = target.bodies.length === 0 ? "<action/>" : pick(random, target.bodies);
  const xml = withJunk(good, random, ids);
  const isJson = chance(random, 3);
  const body = Buffer.from(isJson ? jsonOf(xml, random) : xml);
  return { body: chance(random, 3) ? mutate([body], random) : body, isJson };
}

const types = ["text/plain", "application/xml; charset=utf-16", "multipart/form-data", "application/x+json", "x", ""];
const accepts = [
  "application/json",
  "application/xml",
  "*/*",
  "text/html",
  "application/json;q=0.1, application/xml;q=0",
  ",;q=",
];

/** One request; `ids` are worth asking about. It depends on nothing but its arguments. */
export function randomOvirtRequest(
  targets: readonly OvirtTarget[],
  random: Random,
  { authorization, ids }: { authorization: string; ids: readonly string[] },
): FuzzRequest {
  const target = pick(random, targets);
  const made = bodyOf(target, random, ids);
  const headers: FuzzRequest["headers"] = {
    authorization,
    accept: pick(random, chance(random, 10) ? accepts : accepts.slice(0, 2)),
  };
  const unknown = [
    "Basic",
    "Basic !!!",
    `Basic ${Buffer.from("a\0b:c").toString("base64")}`,
    "Bearer ",
    `Bearer ${"x".repeat(43)}`,
    "Digest a",
  ];
  if (chance(random, 40)) headers["authorization"] = pick(random, unknown);
  if (chance(random, 15)) headers["version"] = pick(random, ["3", "4", "5", "", "4.0", " 3 "]);
  if (chance(random, 15)) headers["all-content"] = pick(random, ["true", "false", "x"]);
  if (chance(random, 15)) headers["correlation-id"] = pick(random, ["a", "b".repeat(60), "\u00e9", "a b"]);
  if (chance(random, 30)) headers["expect"] = pick(random, ["202-accepted", "200-ok", "x"]);
  if (chance(random, 60)) headers["content-encoding"] = pick(random, ["gzip", "deflate", "br", "x"]);
  if (made) {
    const right = made.isJson ? "application/json" : "application/xml";
    headers["content-type"] = chance(random, 15) ? pick(random, types) : right;
  }
  const verb = target.method === "ACTION" ? "POST" : target.method;
  const method = chance(random, 40) ? pick(random, ["PATCH", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]) : verb;
  return { method, path: pathOf(target, random, ids), headers, body: made?.body ?? null };
}
