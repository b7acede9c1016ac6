import { randomBytes, scryptSync } from "node:crypto";
import { request } from "node:http";
import { type Instance, type InstanceOptions, startInstance } from "../../kit/instance.ts";
import { startApiOnly } from "../api-only.ts";

export const password = "let me in: it's 8 o'clock";
export const projects = { a: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b: "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" } as const;

/** A hash as the configuration has it, with the least costs that it accepts. */
export function hashOf(text: string): string {
  const salt = randomBytes(16);
  const key = scryptSync(text, salt, 32, { N: 2 ** 14, r: 8, p: 1 });
  const plain = (bytes: Buffer): string => bytes.toString("base64").replace(/=+$/, "");
  return `$scrypt$ln=14,r=8,p=1$${plain(salt)}$${plain(key)}`;
}

const user = (name: string, project: string, role: string) => ({
  name,
  password_hash: hashOf(password),
  project_id: project,
  roles: [role],
});

/** A member, a reader and an admin of project A, and a member of project B. */
export const ovirtUsers = [
  user("admin@internal", projects.a, "member"),
  user("reader@internal", projects.a, "reader"),
  user("root@internal", projects.a, "admin"),
  user("stranger@internal", projects.b, "member"),
];

const unlimited = { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1, groups: -1 };

const configOf = (config: InstanceOptions["config"]) => ({
  ovirt: { users: ovirtUsers },
  quotas: unlimited,
  ...config,
});

/** An API with users of this dialect, and no workers. */
export const startEngine = (options: Pick<InstanceOptions, "config"> = {}): Promise<Instance> =>
  startApiOnly({ config: configOf(options.config) });

/** The same with a worker. */
export const startEngineWithWorker = (options: Pick<InstanceOptions, "config"> = {}): Promise<Instance> =>
  startInstance({ config: configOf(options.config) });

export interface EngineReply {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
  /** The parsed JSON; undefined where the answer is none. */
  // biome-ignore lint/suspicious/noExplicitAny: tests reach into bodies whose shape is what they check
  json: any;
}

export interface Asked {
  /** Name of the user; null: without credentials. */
  as?: string | null;
  headers?: Record<string, string>;
  /** Sent as XML. */
  xml?: string | Buffer;
  /** Sent as JSON; the answer is then asked for in JSON, too. */
  json?: unknown;
}

export const basic = (name: string, secret = password): string =>
  `Basic ${Buffer.from(`${name}:${secret}`).toString("base64")}`;

/** One request, by Node's own client, which sends any header as it is given. */
export function ask(instance: Instance, method: string, path: string, asked: Asked = {}): Promise<EngineReply> {
  const { as = "admin@internal", xml, json, headers = {} } = asked;
  const body = xml ?? (json === undefined ? undefined : JSON.stringify(json));
  const type: Record<string, string> =
    json === undefined ? (xml === undefined ? {} : { "content-type": "application/xml" }) : jsonHeaders;
  // Node does not tell the length of the body of a DELETE by itself.
  const length = body !== undefined && { "content-length": String(Buffer.byteLength(body)) };
  const sent = { ...(as !== null && { authorization: basic(as) }), ...length, ...type, ...headers };
  return new Promise((resolve, reject) => {
    const outgoing = request(instance.url + path, { method, headers: sent }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => parts.push(part));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(parts).toString();
        const isJson = response.headers["content-type"]?.startsWith("application/json");
        resolve({
          status: response.statusCode ?? 0,
          headers: response.headers,
          text,
          json: isJson ? JSON.parse(text) : undefined,
        });
      });
    });
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}

export const jsonHeaders = { "content-type": "application/json", accept: "application/json" };

export const declaration = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n';

/** An XML answer without its declaration, ids, times and links: what recorded exchanges are compared with. */
export function plain(text: string): string {
  if (!text.startsWith(declaration)) throw new Error(`not the beginning of an XML body: ${text.slice(0, 80)}`);
  return text
    .slice(declaration.length)
    .replace(/\n *<link [^>]*\/>/g, "")
    .replace(/\n *<actions>\s*<\/actions>/g, "")
    .replace(/[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g, "ID")
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+\+00:00/g, "TIME")
    .trimEnd();
}
