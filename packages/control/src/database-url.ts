/** Something in DATABASE_URL cannot be read or honoured. The message names the parameter and never contains its value. */
export class DatabaseUrlError extends Error {
  readonly code = "database-url";
}

/** libpq's modes; what each demands of the server's certificate is in `tlsOptionsOf` (db/connection.ts). */
const sslModes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const;
type SslMode = (typeof sslModes)[number];

/** DATABASE_URL as all of its readers understand it: the programs, the doorbell, migrations, scripts. */
export interface DatabaseUrl {
  /** Tried in this order. A host that begins with `/` is a socket's folder. */
  hosts: readonly { host: string; port: number }[];
  database: string | undefined;
  user: string | undefined;
  password: string | undefined;
  /** Schema of the tables; the whole search path, unless `options` sets a longer one, which begins with it. */
  schema: string;
  /** Settings of every session, including `search_path` and those from `options`, by lower-case name. */
  settings: Readonly<Record<string, string>>;
  applicationName: string | undefined;
  ssl: {
    mode: SslMode;
    /** PEM files, read for each new connection; `system`: the system's trust store. */
    rootCert: string | undefined;
    cert: string | undefined;
    key: string | undefined;
    keyPassword: string | undefined;
    crl: string | undefined;
    minVersion: string | undefined;
    maxVersion: string | undefined;
    negotiation: "postgres" | "direct";
  };
  channelBinding: boolean;
  /** null: the default for the kind of work. */
  connectTimeoutMs: number | null;
  keepAlive: boolean;
  keepAliveIdleMs: number;
  /** True: read-only hosts are skipped. */
  writable: boolean;
  shuffled: boolean;
  /** Declared to go through a transaction pooler; otherwise this is detected. */
  pooled: boolean;
}

const refuse = (problem: string): never => {
  throw new DatabaseUrlError(problem);
};

/** @throws DatabaseUrlError; `what` is a name, never a value */
function decode(text: string, what: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return refuse(`${what} contains an invalid % escape (write % itself as %25)`);
  }
}

/** A value, or one of the values allowed for a parameter. */
function oneOf<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  return allowed.find((one) => one === value) ?? refuse(`${name} must be one of ${allowed.join(", ")}`);
}

function integer(name: string, value: string, max: number): number {
  return /^-?\d{1,9}$/.test(value) && Number(value) <= max
    ? Number(value)
    : refuse(`${name} must be an integer of at most ${max}`);
}

/** libpq parameters that are not supported here, each with what to do instead. */
const refusedParameters: Readonly<Record<string, string>> = {
  hostaddr: "name the host, or its address, as host",
  passfile: "put the password into the URL",
  service: "write out what the service file says",
  servicefile: "write out what the service file says",
  replication: "leave it out",
  keepalives_interval: "leave it out: it cannot be set from here",
  keepalives_count: "leave it out: it cannot be set from here",
  tcp_user_timeout: "leave it out: silent connections are given up anyway",
  sslcrldir: "name one file with sslcrl",
  requirepeer: "leave it out",
  require_auth: "leave it out, or use sslmode=verify-full",
  krbsrvname: "leave it out: GSSAPI is not spoken",
  gsslib: "leave it out: GSSAPI is not spoken",
  gssdelegation: "leave it out: GSSAPI is not spoken",
  ssl: "use sslmode",
  uselibpqcompat: "leave it out: sslmode means what it means to libpq",
  connection_limit: "leave it out: pools have the size that they need",
  pool_timeout: "leave it out",
  socket_timeout: "leave it out",
  statement_cache_size: "leave it out: statements are not kept",
  sslidentity: "use sslcert and sslkey",
  sslaccept: "use sslmode",
  sslpassword_file: "use sslpassword",
};

/** Parameters accepted because they change nothing: their only allowed values. */
const fixedParameters: Readonly<Record<string, readonly string[]>> = {
  client_encoding: ["UTF8", "utf8", "UTF-8", "utf-8"],
  gssencmode: ["disable", "prefer"],
  sslcompression: ["0"],
  sslsni: ["1"],
  pgbouncer: ["true", "false"],
  fallback_application_name: [],
};

const known = new Set([
  ...["host", "port", "dbname", "user", "password", "schema", "options", "application_name", "connect_timeout"],
  ...["keepalives", "keepalives_idle", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"],
  ...["ssl_min_protocol_version", "ssl_max_protocol_version", "sslnegotiation", "sslcertmode", "channel_binding"],
  ...["target_session_attrs", "load_balance_hosts", ...Object.keys(fixedParameters)],
]);

function parametersOf(query: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const part of query === "" ? [] : query.split("&")) {
    const [, rawName = "", rawValue] = /^([^=]*)=?(.*)$/s.exec(part) ?? [];
    const name = decode(rawName, "the name of a parameter");
    const printable = /^[\w-]{1,40}$/.test(name) ? name : "a parameter with an unreadable name";
    const instead = refusedParameters[name];
    if (instead !== undefined && Object.hasOwn(refusedParameters, name)) refuse(`${name} is not supported: ${instead}`);
    if (!known.has(name)) refuse(`${printable} is not a known parameter`);
    if (found.has(name)) refuse(`${name} is given more than once`);
    const value = decode(rawValue ?? "", name);
    if (value === "") refuse(`${name} is empty`);
    if (value.includes("\0")) refuse(`${name} contains a NUL character`);
    const allowed = fixedParameters[name] ?? [];
    if (allowed.length > 0 && !allowed.includes(value)) refuse(`${name} must be ${allowed.join(" or ")}`);
    found.set(name, value);
  }
  return found;
}

/** `HOST[:PORT],…`; a host may be an IPv6 address in brackets, or a folder with escaped slashes. */
function authorityOf(text: string): { hosts: string[]; ports: string[] } {
  if (text === "") return { hosts: [], ports: [] };
  const parts = text
    .split(",")
    .map((part) => /^(\[[^\]]*\]|[^:]*)(?::(.*))?$/s.exec(part) ?? refuse("a host is malformed"));
  return {
    hosts: parts.map(([, host = ""]) => decode(host.replace(/^\[(.*)\]$/s, "$1"), "a host")),
    ports: parts.map(([, , port = ""]) => decode(port, "a port")),
  };
}

function hostsOf(
  authority: { hosts: string[]; ports: string[] },
  parameters: Map<string, string>,
): DatabaseUrl["hosts"] {
  const hosts = parameters.get("host")?.split(",") ?? authority.hosts;
  const ports = parameters.get("port")?.split(",") ?? authority.ports;
  const names = hosts.length === 0 ? ["localhost"] : hosts.map((host) => (host === "" ? "localhost" : host));
  if (ports.length > 1 && ports.length !== names.length) refuse("give one port, or as many ports as hosts");
  return names.map((host, index) => {
    if (/[\s\0]/.test(host)) refuse("host contains white space");
    const port = (ports.length > 1 ? ports[index] : ports[0]) || "5432";
    const number = integer("port", port, 65_535);
    return { host, port: number > 0 ? number : refuse("port must be greater than 0") };
  });
}

/** Words as PostgreSQL splits `options`: at spaces; `\` escapes a space or itself. */
const optionWords = (text: string): string[] =>
  [...text.matchAll(/(?:\\.|[^\s\\])+/gs)].map(([word]) => word.replace(/\\(.)/gs, "$1"));

/** Set in every session, whatever else is configured: what the programs and the adapter read and write depends on it. */
export const fixedSettings: Readonly<Record<string, string>> = {
  timezone: "UTC",
  datestyle: "ISO, MDY",
  intervalstyle: "postgres",
  bytea_output: "hex",
  extra_float_digits: "1",
  standard_conforming_strings: "on",
  default_transaction_isolation: "read committed",
};

function settingsOf(options: string): Record<string, string> {
  const settings: Record<string, string> = {};
  const words = optionWords(options);
  while (words.length > 0) {
    const word = words.shift() ?? "";
    const [, name, value] =
      /^(?:-c|--)([\w.-]+)=(.*)$/s.exec(word === "-c" ? `-c${words.shift() ?? ""}` : word) ??
      refuse("options may contain only -c NAME=VALUE");
    const key = (name ?? "").toLowerCase().replaceAll("-", "_");
    if (Object.hasOwn(fixedSettings, key) || key === "client_encoding") refuse(`options cannot set ${key}`);
    settings[key] = value ?? "";
  }
  return settings;
}

/** Names of a search path, unquoted. */
function pathOf(text: string): string[] {
  const item = /\s*(?:"((?:[^"]|"")+)"|([A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*))\s*(,|$)/gy;
  const names: string[] = [];
  for (let at = 0; ; at = item.lastIndex) {
    item.lastIndex = at;
    const [, quoted, plain, more] = item.exec(text) ?? refuse("options: search_path must be a list of schema names");
    names.push(quoted?.replaceAll('""', '"') ?? (plain ?? "").toLowerCase());
    if (more === "") return names;
  }
}

export const quotedIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/**
 * Schema of the tables. What the server, the role or the database would add to it is ignored: otherwise two readers of one URL could use
 * different schemas.
 */
function schemaOf(schema: string | undefined, path: string | undefined): { schema: string; path: string } {
  if (path === undefined) {
    const one = schema ?? "public";
    return { schema: one, path: quotedIdentifier(one) };
  }
  const names = pathOf(path);
  const [first = ""] = names;
  if (names.includes("$user")) refuse("options: search_path must not contain $user, which differs between users");
  if (schema !== undefined && schema !== first) refuse("schema and the search_path in options differ");
  return { schema: first, path: names.map(quotedIdentifier).join(", ") };
}

function sslOf(parameters: Map<string, string>): DatabaseUrl["ssl"] {
  const mode = oneOf("sslmode", parameters.get("sslmode") ?? "prefer", sslModes);
  const negotiation = oneOf("sslnegotiation", parameters.get("sslnegotiation") ?? "postgres", ["postgres", "direct"]);
  const encrypted = mode === "require" || mode === "verify-ca" || mode === "verify-full";
  if (negotiation === "direct" && !encrypted) refuse("sslnegotiation=direct requires sslmode=require or stricter");
  const version = (name: string): string | undefined => {
    const value = parameters.get(name);
    return value === undefined ? undefined : oneOf(name, value, ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]);
  };
  const [cert, key] = [parameters.get("sslcert"), parameters.get("sslkey")];
  if ((cert === undefined) !== (key === undefined)) refuse("sslcert and sslkey must be given together");
  const certMode = oneOf("sslcertmode", parameters.get("sslcertmode") ?? "allow", ["disable", "allow", "require"]);
  if (certMode === "require" && cert === undefined) refuse("sslcertmode=require requires sslcert and sslkey");
  const rootCert = parameters.get("sslrootcert");
  if (rootCert === "system" && mode !== "verify-full") refuse("sslrootcert=system requires sslmode=verify-full");
  const shown = certMode !== "disable";
  return {
    mode,
    rootCert,
    cert: shown ? cert : undefined,
    key: shown ? key : undefined,
    keyPassword: parameters.get("sslpassword"),
    crl: parameters.get("sslcrl"),
    minVersion: version("ssl_min_protocol_version"),
    maxVersion: version("ssl_max_protocol_version"),
    negotiation,
  };
}

/** As in libpq: 0, a negative number or nothing waits forever; one second is too short and counts as two. */
function connectTimeoutOf(value: string | undefined): number | null {
  const seconds = value === undefined ? 0 : integer("connect_timeout", value, 3_600);
  return seconds <= 0 ? null : Math.max(2, seconds) * 1_000;
}

function flagOf(parameters: Map<string, string>, name: string): boolean {
  return oneOf(name, parameters.get(name) ?? "1", ["0", "1"]) === "1";
}

const shape = /^postgres(?:ql)?:\/\/(?:([^@/?#]*)@)?([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?(#.*)?$/s;

/**
 * Reads `postgresql://[USER[:PASSWORD]@][HOST[:PORT],…][/DATABASE][?NAME=VALUE&…]` with libpq's meaning, plus the common extensions
 * `schema` and `pgbouncer`. Every parameter is either honoured by whoever connects, or refused here.
 *
 * @throws DatabaseUrlError that names the parameter, not its value
 */
export function parseDatabaseUrl(url: string): DatabaseUrl {
  const [, userinfo, authority = "", path = "", query = "", fragment] =
    shape.exec(url) ?? refuse("must be a postgresql:// URL");
  if (fragment !== undefined) refuse("must be a postgresql:// URL; write # as %23");
  const parameters = parametersOf(query);
  const [, user, password] = /^([^:]*)(?::(.*))?$/s.exec(userinfo ?? "") ?? refuse("the user is malformed");
  const settings = settingsOf(parameters.get("options") ?? "");
  const { schema, path: searchPath } = schemaOf(parameters.get("schema"), settings["search_path"]);
  const session = oneOf("target_session_attrs", parameters.get("target_session_attrs") ?? "any", [
    ...(["any", "read-write", "primary"] as const),
  ]);
  const binding = oneOf("channel_binding", parameters.get("channel_binding") ?? "prefer", ["disable", "prefer"]);
  const balance = oneOf("load_balance_hosts", parameters.get("load_balance_hosts") ?? "disable", ["disable", "random"]);
  const nonEmpty = (text: string | undefined, what: string): string | undefined =>
    text === undefined || text === "" ? undefined : decode(text, what);
  return {
    hosts: hostsOf(authorityOf(authority), parameters),
    database: parameters.get("dbname") ?? nonEmpty(path, "the name of the database"),
    user: parameters.get("user") ?? nonEmpty(user, "the user"),
    password: parameters.get("password") ?? nonEmpty(password, "the password"),
    schema,
    settings: { ...settings, search_path: searchPath },
    applicationName: parameters.get("application_name") ?? parameters.get("fallback_application_name"),
    ssl: sslOf(parameters),
    channelBinding: binding === "prefer",
    connectTimeoutMs: connectTimeoutOf(parameters.get("connect_timeout")),
    keepAlive: flagOf(parameters, "keepalives"),
    keepAliveIdleMs: Math.max(0, integer("keepalives_idle", parameters.get("keepalives_idle") ?? "0", 86_400)) * 1_000,
    writable: session !== "any",
    shuffled: balance === "random",
    pooled: parameters.get("pgbouncer") === "true",
  };
}

/** The same URL, for another database of its server. */
export function inDatabase(url: string, database: string): string {
  const [, userinfo, authority = "", , query = ""] = shape.exec(url) ?? refuse("must be a postgresql:// URL");
  const kept = query.split("&").filter((part) => part !== "" && !/^dbname(=|$)/.test(part));
  const user = userinfo === undefined ? "" : `${userinfo}@`;
  const asked = kept.length > 0 ? `?${kept.join("&")}` : "";
  return `postgresql://${user}${authority}/${encodeURIComponent(database)}${asked}`;
}
