import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { encryptRepository } from "./encryption/encrypting-repository.ts";
import type { MasterKeySource } from "./encryption/master-keys.ts";
import { RepositoryConfigError } from "./errors.ts";
import { readCredentials } from "./repository/credentials.ts";
import { NfsRepository } from "./repository/nfs.ts";
import { ObjectRepository } from "./repository/object-repository.ts";
import type { ObjectStore } from "./repository/object-store.ts";
import { PosixRepository } from "./repository/posix.ts";
import { RenewedFile } from "./repository/renewed-file.ts";
import { parseContainer, type Repository } from "./repository/repository.ts";
import { parseRepositoryUrl, type RepositoryUrl } from "./repository/repository-url.ts";
import { RetryingStore, retryPolicyDefault } from "./repository/retrying.ts";
import type { S3Keys } from "./repository/s3.ts";

const MiB = 1024 * 1024;

/** Settings from configuration. They override URL parameters of the same names. */
export interface RepositorySettings {
  /** Part of object names in object stores, like Cinder's storage_availability_zone; "nova" by default. */
  zone?: string | undefined;
  /** A file of secrets, see readCredentials. */
  credentials?: string | undefined;
  accessKey?: string | undefined;
  secretKey?: string | undefined;
  /** Whether a file is read back before it gets its name; default: only on NFS. Object stores verify uploads themselves. */
  readBack?: boolean | undefined;
  /** Master keys: without them encrypted backups can be neither made nor read. */
  encryption?: MasterKeySource | undefined;
}

/**
 * Opens the repository that a URL names: `posix:` and a path, relative ones to the working directory; `nfs:server:/export`,
 * `s3://bucket`, `swift:container`, with parameters (docs/operations.md). Nothing is created or checked, except that files named in the
 * URL and master keys are read; ask for its identity before writing. RepositoryConfigError for any other text; no message contains a
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
  refuseForeignSettings(parsed, settings);
  const zone = settings.zone ?? parsed.parameters.get("zone") ?? "nova";
  switch (parsed.driver) {
    case "posix":
      return new PosixRepository(resolve(parsed.place), { readBack: settings.readBack ?? false });
    case "nfs":
      return new NfsRepository({
        share: parsed.place,
        mountBase: resolve(parsed.parameters.get("mount_base") ?? "/var/lib/tephra/mnt"),
        options: parsed.parameters.get("options") ?? null,
        readBack: settings.readBack ?? new Parameters(parsed).flag("read_back") ?? true,
      });
    case "s3":
      return overHttp(await openS3(new Parameters(parsed), settings), parsed, zone);
    case "swift":
      return overHttp(await openSwift(new Parameters(parsed), settings), parsed, zone);
    default:
      return parsed.driver satisfies never;
  }
}

/** Settings that a driver would ignore are an error, like unknown parameters. */
function refuseForeignSettings(url: RepositoryUrl, settings: RepositorySettings): void {
  const parameters = new Parameters(url);
  const overFiles = url.driver === "posix" || url.driver === "nfs";
  if (overFiles && settings.credentials !== undefined) throw parameters.wrong("credentials", "is for s3 and swift");
  if (url.driver === "s3") return;
  if (settings.accessKey !== undefined) throw parameters.wrong("access_key", "is for s3");
  if (settings.secretKey !== undefined) throw parameters.wrong("secret_key", "is for s3");
}

/**
 * Layers over an object store, from the outside in: the repository, retries, the store. File systems have no retries: the kernel waits
 * for an unreachable server, and what it reports as failed fails again.
 */
function overHttp(store: ObjectStore, url: RepositoryUrl, zone: string): Repository {
  const attempts = new Parameters(url).integer("retries", retryPolicyDefault.attempts, { min: 1, max: 100 });
  return new ObjectRepository(new RetryingStore(store, { ...retryPolicyDefault, attempts }), zone);
}

/** The S3 client is loaded with the first repository that needs it: it costs 30 MiB and a quarter of a second. */
async function openS3(parameters: Parameters, settings: RepositorySettings): Promise<ObjectStore> {
  const { S3Store, bucketRule } = await import("./repository/s3.ts");
  // A backup's record names its bucket and object prefix in the form of Cinder's driver, which has no room for a folder.
  if (parameters.place.includes("/")) throw parameters.notThePlace("a bucket is one repository: it has no folders");
  if (!bucketRule.fits(parameters.place)) throw parameters.notThePlace(bucketRule.text);
  const secrets = await parameters.secrets(settings);
  const endpoint = parameters.httpUrl("endpoint");
  for (const name of ["ca", "insecure"]) {
    if (endpoint?.startsWith("http:") && parameters.text(name) !== null) throw parameters.wrong(name, "is for https");
  }
  const profile = parameters.text("profile");
  const given = await secrets.current();
  const keysOf = (found: ReadonlyMap<string, string>): S3Keys => ({
    accessKey: parameters.needed("access_key", found),
    secretKey: parameters.needed("secret_key", found),
    sessionToken: found.get("session_token") ?? null,
  });
  const chained = !secrets.fromFile && !given.has("access_key") && !given.has("secret_key");
  if (!chained) keysOf(given);
  if (!chained && profile !== null) throw parameters.wrong("profile", "is for credentials that are not given here");
  return new S3Store({
    bucket: parameters.place,
    endpoint,
    region: parameters.matching("region", /^[A-Za-z0-9_.-]{1,128}$/, "is not a region name") ?? "us-east-1",
    pathStyle: parameters.flag("path_style") ?? endpoint !== null,
    profile,
    keys: chained
      ? null
      : {
          current: async () => keysOf(await secrets.current()),
          reread: async () => keysOf(await secrets.reread()),
        },
    conditionalPut: parameters.flag("conditional_put"),
    removeVersions: parameters.flag("remove_versions") ?? false,
    // S3 accepts parts of at least 5 MiB, and at most 5 GiB per request.
    partBytes: parameters.integer("part_bytes", 64 * MiB, { min: 5 * MiB, max: 5120 * MiB }),
    ...(await networkOf(parameters)),
  });
}

async function openSwift(parameters: Parameters, settings: RepositorySettings): Promise<ObjectStore> {
  const { SwiftStore } = await import("./repository/swift.ts");
  if (parameters.place.includes("/")) throw parameters.notThePlace("a container is one repository: it has no folders");
  try {
    parseContainer(parameters.place);
  } catch (error) {
    throw parameters.notThePlace((error as Error).message, { cause: error });
  }
  const secrets = await parameters.secrets(settings);
  const version = parameters.text("auth") ?? "v3";
  if (version !== "v1" && version !== "v3") throw parameters.wrong("auth", "must be v1 or v3");
  for (const name of onlyV3) {
    if (version === "v1" && parameters.text(name) !== null) throw parameters.wrong(name, "is for auth=v3");
  }
  for (const name of ["region", "interface"]) {
    const contradicts = parameters.text("storage_url") !== null && parameters.text(name) !== null;
    if (contradicts) throw parameters.wrong(name, "chooses among endpoints, and storage_url names one");
  }
  if (parameters.text("key_file") !== null && (parameters.text("key") ?? null) !== null) {
    throw parameters.wrong("key_file", "and key cannot both be given");
  }
  const keyFile = await parameters.file("key_file");
  const login = async () => {
    const found = new Map(await secrets.reread());
    if (keyFile !== null) found.set("key", (await keyFile.reread()).trim());
    return { user: parameters.needed("user", found), key: parameters.needed("key", found) };
  };
  await login();
  const authUrl = parameters.httpUrl("auth_url");
  if (authUrl === null) throw parameters.wrong("auth_url", "is needed");
  return new SwiftStore({
    container: parameters.place,
    auth: {
      version,
      url: authUrl,
      login,
      project: parameters.text("project"),
      userDomain: parameters.text("user_domain") ?? "Default",
      projectDomain: parameters.text("project_domain") ?? "Default",
      region: parameters.text("region"),
      interface:
        parameters.matching("interface", /^(?:public|internal|admin)$/, "must be public, internal or admin") ??
        "public",
      storageUrl: parameters.httpUrl("storage_url"),
      account: parameters.text("account"),
    },
    storagePolicy: parameters.text("storage_policy"),
    // 5 GiB is a cluster's default limit per request.
    partBytes: parameters.integer("part_bytes", 64 * MiB, { min: 1024, max: 5120 * MiB }),
    ...(await networkOf(parameters)),
  });
}

/** Parameters that auth=v1 does not have. */
const onlyV3 = ["project", "user_domain", "project_domain", "region", "interface"];

async function networkOf(parameters: Parameters) {
  if (parameters.flag("insecure") === true && parameters.text("ca") !== null) {
    throw parameters.wrong("ca", "and insecure cannot both be given");
  }
  return {
    ca: await trustedFrom(parameters),
    insecure: parameters.flag("insecure") ?? false,
    timeoutMs: parameters.integer("timeout_ms", 60_000, { min: 100, max: 3_600_000 }),
    pageItems: parameters.integer("list_page", 1000, { min: 1, max: 10_000 }),
  };
}

/** CA certificates in PEM that replace the system's, reread when the file changes; null: the system's. */
async function trustedFrom(parameters: Parameters): Promise<(() => Promise<string>) | null> {
  const file = await parameters.file("ca");
  return file === null ? null : () => file.current();
}

/** Secrets by their names in URLs; those in a file may change during use. */
interface Secrets {
  fromFile: boolean;
  current(): Promise<ReadonlyMap<string, string>>;
  reread(): Promise<ReadonlyMap<string, string>>;
}

/** Typed access to URL parameters. Messages name the parameter, never its value. */
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
    // biome-ignore lint/suspicious/noControlCharactersInRegex: matching control characters is the purpose
    if (value !== null && /[\u0000-\u001f\u007f]/.test(value)) throw this.wrong(name, "has a control character");
    return value;
  }

  matching(name: string, pattern: RegExp, rule: string): string | null {
    const value = this.text(name);
    if (value !== null && !pattern.test(value)) throw this.wrong(name, rule);
    return value;
  }

  notThePlace(rule: string, options?: { cause: unknown }): RepositoryConfigError {
    const { driver, place } = this.#url;
    return new RepositoryConfigError(
      `Not the URL of a repository: ${driver}:${JSON.stringify(place.slice(0, 300))}: ${rule}.`,
      options,
    );
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

  /** Contents of a file that a parameter names, read now and again whenever the file changes. */
  async file(name: string): Promise<RenewedFile<string> | null> {
    const path = this.text(name);
    if (path === null) return null;
    const file = new RenewedFile(path, async () => {
      try {
        return await readFile(path, "utf8");
      } catch (cause) {
        throw new RepositoryConfigError(`The file ${path} (${name}) cannot be read.`, { cause });
      }
    });
    await file.current();
    return file;
  }

  /** Precedence: settings, URL, then the current contents of the credentials file. */
  async secrets(settings: RepositorySettings): Promise<Secrets> {
    const path = settings.credentials ?? this.text("credentials");
    const file = path === null ? null : new RenewedFile(path, readCredentials);
    const fixed = new Map<string, string>();
    for (const name of ["access_key", "secret_key", "user", "key"]) {
      const value = this.text(name);
      if (value !== null) fixed.set(name, value);
    }
    if (settings.accessKey !== undefined) fixed.set("access_key", settings.accessKey);
    if (settings.secretKey !== undefined) fixed.set("secret_key", settings.secretKey);
    await file?.current();
    return {
      fromFile: file !== null,
      current: async () => new Map([...((await file?.current()) ?? []), ...fixed]),
      reread: async () => new Map([...((await file?.reread()) ?? []), ...fixed]),
    };
  }

  needed(name: string, secrets: ReadonlyMap<string, string>): string {
    const value = secrets.get(name);
    if (value === undefined || value === "")
      throw this.wrong(name, "is needed: in the URL or in a file of credentials");
    return value;
  }
}
