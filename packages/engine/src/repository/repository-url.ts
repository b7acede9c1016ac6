import { RepositoryConfigError } from "../errors.ts";

/** The parts of a repository's URL. Parameter values are unvalidated text; each consumer checks them. */
export interface RepositoryUrl {
  driver: "posix" | "nfs" | "s3" | "swift";
  /** Folder, share, bucket or container. */
  place: string;
  parameters: ReadonlyMap<string, string>;
}

const forms = "posix:/folder, nfs:server:/export?…, s3://bucket?… or swift:container?…";
const urlBytesMax = 8192;

const common = ["zone"];
const network = ["credentials", "ca", "insecure", "timeout_ms", "retries", "part_bytes", "list_page", "region"];
const parametersOf: Record<Exclude<RepositoryUrl["driver"], "posix">, ReadonlySet<string>> = {
  nfs: new Set([...common, "mount_base", "options", "read_back"]),
  s3: new Set([
    ...common,
    ...network,
    "endpoint",
    "path_style",
    "profile",
    "access_key",
    "secret_key",
    "conditional_put",
    "remove_versions",
  ]),
  swift: new Set([
    ...common,
    ...network,
    ...["auth", "auth_url", "user", "key", "key_file", "project", "user_domain", "project_domain"],
    ...["storage_url", "account", "interface", "storage_policy"],
  ]),
};

/** Parameters that may appear without a value, which is then `true`. */
const flags: ReadonlySet<string> = new Set(["insecure", "path_style", "conditional_put", "remove_versions"]);

/** Parameters whose values are never shown. */
const secret = /^(?:secret_key|key|access_key)$/;

/** Parses `driver:place?name=value&…`; percent-encoded except for posix, where everything is the path. RepositoryConfigError. */
export function parseRepositoryUrl(url: string): RepositoryUrl {
  const [, driver, rest] = /^(posix|nfs|swift|s3):(.+)$/s.exec(url) ?? [];
  const tooLong = Buffer.byteLength(url) > urlBytesMax;
  if (driver === undefined || rest === undefined || url.includes("\0") || tooLong) return refuse(url);
  if (driver === "posix") return { driver, place: rest, parameters: new Map() };
  const known = parametersOf[driver as "nfs" | "s3" | "swift"];
  const mark = rest.indexOf("?");
  const path = mark === -1 ? rest : rest.slice(0, mark);
  const query = mark === -1 ? "" : rest.slice(mark + 1);
  const place = decode(url, driver === "s3" ? path.replace(/^\/\//, "").replace(/\/$/, "") : path);
  if (place === "" || place.includes("\0")) return refuse(url);
  const parameters = new Map<string, string>();
  for (const pair of query.split("&").filter((each) => each !== "")) {
    const equals = pair.indexOf("=");
    const name = decode(url, equals === -1 ? pair : pair.slice(0, equals));
    if (!known.has(name)) return refuse(url, `${JSON.stringify(name.slice(0, 100))} is not a parameter of ${driver}`);
    if (equals === -1 && !flags.has(name)) return refuse(url, `the parameter ${name} has no value`);
    if (parameters.has(name)) return refuse(url, `the parameter ${name} is there twice`);
    parameters.set(name, equals === -1 ? "true" : decode(url, pair.slice(equals + 1)));
  }
  return { driver: driver as "nfs" | "s3" | "swift", place, parameters };
}

/** The URL with secrets replaced by `***`, for messages and output. */
export function redactRepositoryUrl(url: string): string {
  if (url.startsWith("posix:")) return url;
  return url.replace(/([?&])([^=&]+)=[^&]*/g, (whole, mark: string, name: string) => {
    // A percent-encoded name is treated as secret, to be safe.
    return secret.test(name) || name.includes("%") ? `${mark}${name}=***` : whole;
  });
}

function refuse(url: string, reason?: string): never {
  const shown = JSON.stringify(redactRepositoryUrl(url).slice(0, 300));
  const why = reason === undefined ? `Expected ${forms}` : `${reason[0]?.toUpperCase()}${reason.slice(1)}`;
  throw new RepositoryConfigError(`Not the URL of a repository: ${shown}. ${why}.`);
}

function decode(url: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return refuse(url, "a percent sign is not followed by two hexadecimal digits");
  }
}
