import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { encryptRepository } from "../encryption/encrypting-repository.ts";
import type { MasterKeySource } from "../encryption/master-keys.ts";
import { RepositoryConfigError } from "../errors.ts";
import { readCredentials } from "./credentials.ts";
import { NfsRepository } from "./nfs.ts";
import { ObjectRepository } from "./object-repository.ts";
import type { ObjectStore } from "./object-store.ts";
import { PosixRepository } from "./posix.ts";
import type { Repository } from "./repository.ts";
import { parseRepositoryUrl, type RepositoryUrl } from "./repository-url.ts";
import { RetryingStore, retryPolicyDefault } from "./retrying.ts";

const MiB = 1024 * 1024;

/** What configuration knows beside the URL. It wins over the URL's parameters of the same names. */
export interface RepositorySettings {
  /** Part of the names on object stores, as Cinder's storage_availability_zone; "nova" by default. */
  zone?: string | undefined;
  /** A file with the secrets, see readCredentials. */
  credentials?: string | undefined;
  accessKey?: string | undefined;
  secretKey?: string | undefined;
  /** Master keys: without them no encrypted backup can be made or read. */
  encryption?: MasterKeySource | undefined;
}

/**
 * Opens the repository that a URL names: `posix:` and a path, relative ones to the working directory; `nfs:server:/export`,
 * `s3://bucket`, `swift:container`, with parameters (docs/operations.md). Nothing is created or checked, except that files named
 * in the URL and master keys are read; ask for its identity before writing. RepositoryConfigError for any other text; no message has a
 * secret.
 */
export async function openRepository(url: string, settings: RepositorySettings = {}): Promise<Repository> {
  const stored = await openStored(url, settings);
  if (settings.encryption === undefined) return stored;
  try {
    return await encryptRepository(stored, settings.encryption);
  } catch (error) {
    await stored[Symbol.asyncDispose]();
    throw error;
  }
}

async function openStored(url: string, settings: RepositorySettings): Promise<Repository> {
  const parsed = parseRepositoryUrl(url);
  const zone = settings.zone ?? parsed.parameters.get("zone") ?? "nova";
  switch (parsed.driver) {
    case "posix":
      return new PosixRepository(resolve(parsed.place));
    case "nfs":
      return new NfsRepository({
        share: parsed.place,
        mountBase: resolve(parsed.parameters.get("mount_base") ?? "/var/lib/tephra/mnt"),
        options: parsed.parameters.get("options") ?? null,
      });
    case "s3":
      return overHttp(await openS3(new Parameters(parsed), settings), parsed, zone);
    case "swift":
      return overHttp(await openSwift(new Parameters(parsed), settings), parsed, zone);
    default:
      return parsed.driver satisfies never;
  }
}

/**
 * The layers over a store of objects, from the outside: what a repository is, then repetition, then the store. File systems have
 * no repetition: the kernel waits for a server that is away, and what it reports as failed fails again.
 */
function overHttp(store: ObjectStore, url: RepositoryUrl, zone: string): Repository {
  const attempts = new Parameters(url).integer("retries", retryPolicyDefault.attempts, { min: 1, max: 100 });
  return new ObjectRepository(new RetryingStore(store, { ...retryPolicyDefault, attempts }), zone);
}

/** Its client is loaded with the first repository that needs it: that costs 30 MiB and a quarter of a second. */
async function openS3(parameters: Parameters, settings: RepositorySettings): Promise<ObjectStore> {
  const { S3Store } = await import("./s3.ts");
  const secrets = await parameters.secrets(settings);
  const endpoint = parameters.httpUrl("endpoint");
  return new S3Store({
    bucket: parameters.place,
    endpoint,
    region: parameters.text("region") ?? "us-east-1",
    pathStyle: parameters.flag("path_style") ?? endpoint !== null,
    accessKey: parameters.needed("access_key", secrets),
    secretKey: parameters.needed("secret_key", secrets),
    sessionToken: secrets.get("session_token") ?? null,
    conditionalPut: parameters.flag("conditional_put"),
    // 5 MiB is the least that S3 takes for a part, 5 GiB the most for one request.
    partBytes: parameters.integer("part_bytes", 64 * MiB, { min: 5 * MiB, max: 5120 * MiB }),
    ...(await networkOf(parameters)),
  });
}

async function openSwift(parameters: Parameters, settings: RepositorySettings): Promise<ObjectStore> {
  const { SwiftStore } = await import("./swift.ts");
  const secrets = await parameters.secrets(settings);
  const version = parameters.text("auth") ?? "v3";
  if (version !== "v1" && version !== "v3") throw parameters.wrong("auth", "must be v1 or v3");
  const keyFile = parameters.text("key_file");
  if (keyFile !== null) secrets.set("key", (await parameters.file("key_file"))?.trim() ?? "");
  const authUrl = parameters.httpUrl("auth_url");
  if (authUrl === null) throw parameters.wrong("auth_url", "is needed");
  return new SwiftStore({
    container: parameters.place,
    auth: {
      version,
      url: authUrl,
      user: parameters.needed("user", secrets),
      key: parameters.needed("key", secrets),
      project: parameters.text("project"),
      userDomain: parameters.text("user_domain") ?? "Default",
      projectDomain: parameters.text("project_domain") ?? "Default",
      region: parameters.text("region"),
      interface: parameters.text("interface") ?? "public",
      storageUrl: parameters.httpUrl("storage_url"),
      account: parameters.text("account"),
    },
    storagePolicy: parameters.text("storage_policy"),
    // 5 GiB is what a cluster takes in one request unless it is told otherwise.
    partBytes: parameters.integer("part_bytes", 64 * MiB, { min: 1024, max: 5120 * MiB }),
    ...(await networkOf(parameters)),
  });
}

async function networkOf(parameters: Parameters) {
  return {
    ca: await parameters.file("ca"),
    insecure: parameters.flag("insecure") ?? false,
    timeoutMs: parameters.integer("timeout_ms", 60_000, { min: 100, max: 3_600_000 }),
    pageItems: parameters.integer("list_page", 1000, { min: 1, max: 10_000 }),
  };
}

/** Parameters of a URL with their kinds. Messages name the parameter, never its value. */
class Parameters {
  readonly place: string;
  readonly #url: RepositoryUrl;

  constructor(url: RepositoryUrl) {
    this.place = url.place;
    this.#url = url;
  }

  wrong(name: string, rule: string): RepositoryConfigError {
    const { driver, place } = this.#url;
    return new RepositoryConfigError(`The repository ${driver}:${place}: ${name} ${rule}.`);
  }

  text(name: string): string | null {
    const value = this.#url.parameters.get(name) ?? null;
    if (value === "") throw this.wrong(name, "is empty");
    return value;
  }

  flag(name: string): boolean | null {
    const value = this.text(name);
    if (value !== null && value !== "true" && value !== "false") throw this.wrong(name, "must be true or false");
    return value === null ? null : value === "true";
  }

  integer(name: string, otherwise: number, { min, max }: { min: number; max: number }): number {
    const text = this.text(name);
    const value = text === null ? otherwise : /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw this.wrong(name, `must be a whole number from ${min} to ${max}`);
    return value;
  }

  httpUrl(name: string): string | null {
    const value = this.text(name);
    if (value === null) return null;
    const url = URL.canParse(value) ? new URL(value) : null;
    const right = url !== null && /^https?:$/.test(url.protocol) && url.username === "" && url.password === "";
    if (!right) throw this.wrong(name, "must be an http:// or https:// URL without credentials");
    return value.replace(/\/+$/, "");
  }

  async file(name: string): Promise<string | null> {
    const path = this.text(name);
    if (path === null) return null;
    try {
      return await readFile(path, "utf8");
    } catch (cause) {
      throw new RepositoryConfigError(`The file ${path} (${name}) cannot be read.`, { cause });
    }
  }

  /** Settings first, then the URL, then the file of credentials. */
  async secrets(settings: RepositorySettings): Promise<Map<string, string>> {
    const path = settings.credentials ?? this.text("credentials");
    const secrets = path === null ? new Map<string, string>() : await readCredentials(path);
    for (const name of ["access_key", "secret_key", "user", "key"]) {
      const value = this.text(name);
      if (value !== null) secrets.set(name, value);
    }
    if (settings.accessKey !== undefined) secrets.set("access_key", settings.accessKey);
    if (settings.secretKey !== undefined) secrets.set("secret_key", settings.secretKey);
    return secrets;
  }

  needed(name: string, secrets: ReadonlyMap<string, string>): string {
    const value = secrets.get(name);
    if (value === undefined || value === "")
      throw this.wrong(name, "is needed: in the URL or in a file of credentials");
    return value;
  }
}
