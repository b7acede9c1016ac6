import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { blockBytesMin, objectBytesMax, zonePattern } from "@tephra/format";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { DatabaseUrlError, parseDatabaseUrl } from "./database-url.ts";
import { ConfigError, NotFoundError } from "./errors.ts";
import { httpFields } from "./http-config.ts";
import { parseRedisUrl } from "./redis-options.ts";

const MiB = 1024 * 1024;

const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, "must be a short name of letters, digits, '.', '_' or '-'");
const quotaLimit = z.int().min(-1).max(2_147_483_647);

/** The folder in the data folder that files come in by and go out by, unless `import_roots` says others. */
export const exchangeFolder = "exchange";

/** Roles of a static token, as OpenStack names them. */
export const roles = ["reader", "member", "admin"] as const;
export type Role = (typeof roles)[number];

const Token = z.strictObject({
  sha256: z.string().regex(/^[0-9a-fA-F]{64}$/, "must be the SHA-256 of the token, 64 hex digits"),
  user_id: z.string().min(1),
  project_id: z.string().regex(/^[0-9a-f-]+$/, "must be made of the characters 0-9 a-f and -"),
  roles: z.array(z.enum(roles)).min(1),
});

/** Every value of Cinder's option, and the level of its codec: Cinder's own defaults. Zeros are compressed with zlib where it is off. */
export const compressionLevels = { zlib: 6, gzip: 6, bz2: 9, bzip2: 9, zstd: 3, none: 6, off: 6, no: 6 } as const;
export type Compression = keyof typeof compressionLevels;

/** A URL in which every parameter is known and can be obeyed. */
const databaseUrl = (variable: string) =>
  z.string().superRefine((url, context) => {
    try {
      parseDatabaseUrl(url);
    } catch (error) {
      if (!(error instanceof DatabaseUrlError)) throw error;
      context.addIssue({ code: "custom", message: `${error.message} (${variable})` });
    }
  });

/** What makes zlib streams. */
const zlibEncoders = ["zlib", "isal"] as const;
export type ZlibEncoder = (typeof zlibEncoders)[number];
/** Of ISA-L: what comes near zlib's own default. */
const isalLevel = 2;

/** Where the master keys of a repository come from: new backups there are encrypted. Read by the worker alone. */
const Encryption = z
  .strictObject({
    key_file: z.string().min(1).optional(),
    /** A program with its arguments, run without a shell. */
    key_command: z.array(z.string()).min(1).optional(),
  })
  .refine((e) => (e.key_file === undefined) !== (e.key_command === undefined), {
    error: "must have either key_file or key_command",
  });

const zone = z.string().regex(zonePattern, "must be printable ASCII without slashes and backslashes");

const Repository = z
  .strictObject({
    name,
    url: z
      .string()
      .regex(
        /^(?:posix|nfs|s3|swift):.+/,
        "must be a repository URL: posix:/dir, nfs:server:/export, s3://bucket or swift:container",
      ),
    /** A file with the secrets of the repository, readable by the worker alone. */
    credentials: z.string().min(1).optional(),
    access_key: z.string().min(1).optional(),
    secret_key: z.string().min(1).optional(),
    encryption: Encryption.optional(),
    /** The availability zone of backups in it; part of the names of objects in S3 and Swift. */
    zone: zone.optional(),
    default: z.boolean().default(false),
    block_bytes: z
      .int()
      .min(blockBytesMin)
      .max(16 * MiB)
      .default(32_768),
    object_bytes: z.int().min(4096).max(objectBytesMax).default(52_428_800),
    compression: z
      .string()
      .toLowerCase()
      .pipe(z.enum(Object.keys(compressionLevels) as [Compression, ...Compression[]]))
      .default("zlib"),
    zlib_encoder: z.enum(zlibEncoders).default("zlib"),
    /** Whether objects in a folder are read again before they get their name; left out: on NFS. */
    read_back: z.boolean().optional(),
    /** Tasks that may be at work on it at once, of all workers together; null: as many as there are slots. */
    max_running_tasks: z.int().min(1).nullable().default(null),
  })
  .refine((r) => r.zlib_encoder === "zlib" || r.compression === "zlib" || r.compression === "gzip", {
    path: ["zlib_encoder"],
    error: "can only be isal where compression is zlib or gzip",
  })
  .refine((r) => r.object_bytes % r.block_bytes === 0, {
    path: ["object_bytes"],
    error: "must be a multiple of block_bytes",
  });

const VolumeBackend = z.strictObject({ name, driver: z.literal("file"), path: z.string().min(1) });

/** A file of PEM certificates, of which one must be at the end of the server's chain; null: what the machine trusts. */
const ca = z.string().min(1).nullable().default(null);

/** A Keystone v3 that says whose a token is, and the user by whose right it is asked. */
const Keystone = z.strictObject({
  /** Where it listens, with or without `/v3` at the end. */
  url: z
    .string()
    .regex(/^https?:\/\/[^\s]+$/, "must be an http:// or https:// URL")
    .transform((url) => url.replace(/\/+$/, "").replace(/\/v3$/, "")),
  username: z.string().min(1),
  password: z.string().min(1),
  user_domain: z.string().min(1).default("Default"),
  project: z.string().min(1).default("service"),
  project_domain: z.string().min(1).default("Default"),
  /** What a refused client is told to ask for a token; null: `url`. */
  www_authenticate_uri: z.string().min(1).nullable().default(null),
  /** How long an answer is believed: a token that is revoked works at most so much longer. */
  cache_ms: z.int().min(0).default(60_000),
  /** Answers kept at once. */
  cache_tokens_max: z.int().min(1).default(10_000),
  timeout_ms: z.int().min(100).default(10_000),
  ca,
});

/** Who is told of events. Secrets sign what is sent. */
const Notifications = z
  .strictObject({
    webhooks: z
      .array(
        z.strictObject({
          name,
          /** Whoever answers there learns of every project: it comes from here alone, never from a request. */
          url: z
            .url({ protocol: /^https?$/, error: "must be an http:// or https:// URL" })
            .refine(
              (url) => !/^https?:\/\/[^/?#]*@/i.test(url),
              "must not carry a user or password: `secret` signs instead",
            ),
          secret: z.string().min(16, "must have at least 16 characters"),
          ca,
        }),
      )
      .default([])
      .refine((items) => new Set(items.map((i) => i.name)).size === items.length, "names must differ"),
    /** The key of a stream in Redis; null: none. */
    redis_stream: z.string().min(1).nullable().default(null),
    /** The stream is cut to about so many entries. */
    redis_stream_entries_max: z.int().min(1).default(10_000),
    log: z.boolean().default(false),
    /** After so many attempts a delivery is dead, and waits for an admin. */
    attempts_max: z.int().min(1).default(12),
    /** The pause after the first attempt; it doubles with every further one. */
    backoff_ms: z.int().min(1).default(2_000),
    backoff_ms_max: z.int().min(1).default(3_600_000),
    timeout_ms: z.int().min(1).default(10_000),
    poll_ms: z.int().min(10).default(1_000),
  })
  .prefault({});

const checkRedisUrl = (url: string, context: z.core.$RefinementCtx): void => {
  try {
    parseRedisUrl(url);
  } catch (error) {
    context.addIssue({ code: "custom", message: `${(error as Error).message} (REDIS_URL)` });
  }
};

const unique = (items: readonly { name: string }[]) => new Set(items.map((i) => i.name)).size === items.length;

/** The file, before the environment is laid over it. */
export const ConfigFile = z
  .strictObject({
    host: z.string().min(1).default("127.0.0.1"),
    port: z.coerce.number().int().min(0).max(65_535).default(8776),
    /** Scheme, host and path that links in answers begin with; null: what the request says. */
    public_endpoint: z
      .string()
      .regex(/^https?:\/\/[^\s]+$/, "must be an http:// or https:// URL")
      .transform((url) => url.replace(/\/+$/, ""))
      .nullable()
      .default(null),
    ...httpFields,
    /** What one page of a list holds at most. */
    list_max: z.int().min(1).max(100_000).default(1000),
    /** What this machine is called among the services; null: its host name. */
    host_name: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,253}$/, "must be a host name")
      .nullable()
      .default(null),
    /** Where volumes are, and backups in a repository that names no zone. */
    availability_zone: zone.default("nova"),
    data_dir: z.string().min(1),
    database_url: databaseUrl("DATABASE_URL"),
    /** Another way to the same database, past a pooler: for the doorbell and migrations; null: `database_url`. */
    database_direct_url: databaseUrl("DATABASE_DIRECT_URL").nullable().default(null),
    redis_url: z.string().superRefine(checkRedisUrl),
    auth: z
      .strictObject({
        mode: z.enum(["none", "static", "keystone"]).default("none"),
        tokens: z.array(Token).default([]),
        keystone: Keystone.nullable().default(null),
        /** False: whoever has a token of a project, with whatever role, may do what a member may. */
        enforce_new_defaults: z.boolean().default(true),
      })
      .prefault({})
      .refine((a) => a.mode !== "static" || a.tokens.length > 0, {
        path: ["tokens"],
        error: "static mode needs at least one token",
      })
      .refine((a) => a.mode !== "keystone" || a.keystone !== null, {
        path: ["keystone"],
        error: "keystone mode needs its url, username and password",
      }),
    repositories: z.array(Repository).min(1).refine(unique, "names must differ"),
    volume_backends: z.array(VolumeBackend).min(1).refine(unique, "names must differ"),
    quotas: z
      .strictObject({
        volumes: quotaLimit.default(10),
        snapshots: quotaLimit.default(10),
        gigabytes: quotaLimit.default(1000),
        backups: quotaLimit.default(10),
        backup_gigabytes: quotaLimit.default(1000),
        per_volume_gigabytes: quotaLimit.default(-1),
        groups: quotaLimit.default(10),
      })
      .prefault({}),
    /** What users may say about one volume, snapshot or backup in pairs of their own. */
    metadata: z
      .strictObject({
        /** Pairs; -1: any number. */
        items_max: z.int().min(-1).default(128),
        /** Keys and values together, in bytes of UTF-8. */
        bytes_max: z.int().min(1024).max(MiB).default(32_768),
      })
      .prefault({}),
    notifications: Notifications,
    /** How long messages to users are kept: 30 days, as Cinder keeps them. */
    message_ttl_seconds: z.int().min(1).default(2_592_000),
    /** What an import looks at: the metadata and the listing, or also every byte of the chain. */
    import_verify: z.enum(["listing", "deep"]).default("listing"),
    /** Verifications that nobody asks for. */
    verify: z
      .strictObject({
        /** How often a sample of the backups that were not verified for so long is; null: never. */
        interval_hours: z.number().positive().nullable().default(null),
        /** Of all available backups, so many per cent at a time, those first that were not verified for the longest time. */
        sample_percent: z.number().positive().max(100).default(100),
        mode: z.enum(["quick", "deep", "drill"]).default("deep"),
      })
      .prefault({}),
    /** The removal of what nobody needs any more. */
    reaper: z
      .strictObject({
        /** Null: only when asked. */
        interval_hours: z.number().positive().nullable().default(24),
        /** What is younger is left alone; more than clocks of stores and workers may differ. */
        grace_minutes: z.number().min(0).default(60),
      })
      .prefault({}),
    audit: z
      .strictObject({
        /** How long it is remembered who changed the status of what. */
        retention_days: z.number().positive().default(90),
      })
      .prefault({}),
    operations: z
      .strictObject({
        /** How long operations are kept that have ended; their tasks go after a week at most. */
        retention_days: z.number().min(1).default(90),
      })
      .prefault({}),
    instances: z
      .strictObject({
        /** Folders in which the sockets of hypervisors and guest agents may lie. */
        qmp_socket_roots: z.array(z.string().min(1)).default([]),
      })
      .prefault({}),
    instance_groups: z
      .strictObject({
        /** How long a request without `async` waits for its end; then it is answered as one with it. */
        sync_wait_timeout_ms: z.int().min(0).default(3_600_000),
        /** The status of an answer to `async`. */
        async_status_code: z.union([z.literal(201), z.literal(202)]).default(201),
        /** The longest that a guest is kept from writing. */
        freeze_limit_ms: z.int().min(100).default(10_000),
        /** Fail where no guest agent can freeze the guest's file systems, instead of a backup as after a power cut. */
        require_consistency: z.boolean().default(false),
      })
      .prefault({}),
    import_roots: z.array(z.string().min(1)).default([]),
    /** Bytes of a volume that one task copies; rounded down to whole object windows, at least one. */
    range_bytes: z
      .int()
      .min(4096)
      .default(512 * MiB),
    worker: z
      .strictObject({
        /** Tasks that one worker process runs at once. */
        slots: z.int().min(1).max(256).default(4),
        /** Threads that hash and compress; null: one per core. */
        threads: z.int().min(1).max(256).nullable().default(null),
        /** Bytes of window buffers, shared by all slots. */
        memory_bytes: z
          .int()
          .min(8 * MiB)
          .default(128 * MiB),
        lease_ms: z.int().min(500).default(10_000),
        heartbeat_ms: z.int().min(100).default(3_000),
        /** A worker that was not heard of for so long is down; null: four heartbeats. */
        down_ms: z.int().min(200).nullable().default(null),
        /** A stopping worker hands back what is not done by then. */
        drain_ms: z.int().min(0).default(5_000),
      })
      .prefault({})
      .refine((w) => w.heartbeat_ms * 2 <= w.lease_ms, {
        path: ["heartbeat_ms"],
        error: "must be at most half of lease_ms",
      }),
    tasks: z
      .strictObject({
        /** A job that nobody claimed for so long is dispatched again. */
        dispatch_timeout_ms: z.int().min(500).default(30_000),
        /** A task that no live worker can reach fails after this, as Cinder fails it. */
        unplaced_timeout_ms: z.int().min(500).default(60_000),
        /** A task in which nothing moves for so long is given up, and so is the place that it waits for; some kinds are given more. */
        quiet_ms: z.int().min(500).default(60_000),
        reconcile_ms: z.int().min(100).default(2_000),
        attempts_max: z.int().min(1).default(3),
        claims_max: z.int().min(1).default(100),
        backoff_ms: z.int().min(0).default(1_000),
      })
      .prefault({}),
    dispatcher: z
      .strictObject({
        /** Tasks of one project at once while another has something to do, too; null: any number. */
        project_cap: z.int().min(1).nullable().default(null),
      })
      .prefault({}),
    /** What a project may ask of one API process. */
    rate_limits: z
      .strictObject({
        /** Requests within the window; null: any number. */
        requests: z.int().min(1).nullable().default(null),
        /** Of those, what may change something: all but GET and HEAD. */
        changes: z.int().min(1).nullable().default(null),
        window_seconds: z.int().min(1).default(60),
      })
      .prefault({}),
    /** For fault tests: the process kills itself the n-th time it reaches a named point. */
    crash_at: z
      .string()
      .regex(/^[a-z0-9.-]+:[1-9]\d*$/, "must be POINT:N")
      .nullable()
      .default(null),
    /** How often each process logs its memory, descriptors and event-loop delay. */
    vitals_ms: z.int().min(1_000).default(60_000),
    log_level: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).default("info"),
  })
  .superRefine((config, context) => {
    if (config.auth.mode === "none" && !isLoopback(config.host)) {
      context.addIssue({
        code: "custom",
        path: ["host"],
        message: "auth mode none listens on a loopback address only",
      });
    }
    if (config.repositories.filter((r) => r.default).length > 1) {
      context.addIssue({
        code: "custom",
        path: ["repositories"],
        message: "at most one repository can be the default",
      });
    }
  })
  .transform((config) => ({
    ...config,
    repositories: config.repositories.map((r) => ({ ...r, zone: r.zone ?? config.availability_zone })),
    worker: { ...config.worker, down_ms: config.worker.down_ms ?? 4 * config.worker.heartbeat_ms },
  }));

type Parsed = z.infer<typeof ConfigFile>;

/**
 * The whole configuration, checked. Paths are absolute. `hostName` is this machine's, for rows and logs, where `host_name` does not say
 * another; `configFile` is what was read, null when there was no file.
 */
export type Config = Parsed & { hostName: string; configFile: string | null };
export type KeystoneConfig = z.infer<typeof Keystone>;
export type RepositoryConfig = Parsed["repositories"][number];
export type VolumeBackendConfig = Parsed["volume_backends"][number];

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

function readFile(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new ConfigError([{ key: "TEPHRA_CONFIG", problem: `${path} cannot be read: ${(cause as Error).message}` }], {
      cause,
    });
  }
  let value: unknown;
  try {
    value = parseYaml(text) ?? {};
  } catch (cause) {
    throw new ConfigError([{ key: "TEPHRA_CONFIG", problem: `${path} is not YAML: ${(cause as Error).message}` }], {
      cause,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ConfigError([{ key: "TEPHRA_CONFIG", problem: `${path} must hold a mapping` }]);
  }
  return value as Record<string, unknown>;
}

/** A variable, or what is in the file that the variable `<name>_FILE` names: how containers are given secrets. */
function valueOrFile(env: Readonly<Record<string, string | undefined>>, name: string): string | undefined {
  const path = env[`${name}_FILE`];
  if (!path) return env[name];
  if (env[name]) throw new ConfigError([{ key: name, problem: `is set, and ${name}_FILE too` }]);
  try {
    return readFileSync(path, "utf8").trim();
  } catch (cause) {
    throw new ConfigError([{ key: `${name}_FILE`, problem: `cannot be read: ${(cause as Error).message}` }], { cause });
  }
}

/** The password of Keystone's user may come by the environment, so that the file need hold no secret. */
function addSecret(raw: Record<string, unknown>, password: string | undefined): void {
  const auth = raw["auth"] as { keystone?: object } | undefined;
  if (password && auth?.keystone) raw["auth"] = { ...auth, keystone: { ...auth.keystone, password } };
}

/**
 * Environment and file (TEPHRA_CONFIG, YAML) → Config; the environment wins. The sole reader of the environment.
 * With no file: auth `none`, one posix repository, one `file` backend and a folder for imports and exports under the data folder.
 *
 * @throws ConfigError that lists every problem with its key
 */
export function loadConfig(env: Readonly<Record<string, string | undefined>> = process.env): Config {
  const file = env["TEPHRA_CONFIG"] ? readFile(env["TEPHRA_CONFIG"]) : {};
  const overrides = Object.entries({
    database_url: valueOrFile(env, "DATABASE_URL"),
    database_direct_url: valueOrFile(env, "DATABASE_DIRECT_URL"),
    redis_url: valueOrFile(env, "REDIS_URL"),
    host: env["TEPHRA_HOST"],
    host_name: env["TEPHRA_HOST_NAME"],
    port: env["TEPHRA_PORT"],
    data_dir: env["TEPHRA_DATA_DIR"],
    crash_at: env["TEPHRA_CRASH_AT"],
  }).filter(([, value]) => value !== undefined && value !== "");
  const raw: Record<string, unknown> = { ...file, ...Object.fromEntries(overrides) };
  const workingDir = resolve(env["TEPHRA_WORKING_DIR"] || ".");
  addSecret(raw, env["TEPHRA_KEYSTONE_PASSWORD"]);
  const dataDir = resolve(workingDir, typeof raw["data_dir"] === "string" ? raw["data_dir"] : "var");
  raw["data_dir"] = dataDir;
  raw["repositories"] ??= [{ name: "main", url: `posix:${resolve(dataDir, "repository")}`, default: true }];
  raw["volume_backends"] ??= [{ name: "files", driver: "file", path: resolve(dataDir, "volumes") }];
  raw["import_roots"] ??= [resolve(dataDir, exchangeFolder)];
  const parsed = ConfigFile.safeParse(raw);
  if (!parsed.success) {
    throw new ConfigError(parsed.error.issues.map((i) => ({ key: i.path.join(".") || "(file)", problem: i.message })));
  }
  const configFile = env["TEPHRA_CONFIG"] ? resolve(env["TEPHRA_CONFIG"]) : null;
  return { ...parsed.data, hostName: parsed.data.host_name ?? hostname(), configFile };
}

/** The level that a repository's encoder is given. */
export function levelOf({ compression, zlib_encoder: zlibEncoder }: RepositoryConfig): number {
  return zlibEncoder === "isal" ? isalLevel : compressionLevels[compression];
}

/** The repository that new backups go to: the one marked `default`, else the first. */
export function defaultRepository(config: Config): RepositoryConfig {
  const found = config.repositories.find((r) => r.default) ?? config.repositories[0];
  if (!found) throw new ConfigError([{ key: "repositories", problem: "at least one is needed" }]);
  return found;
}

/** @throws NotFoundError for a name that is not configured */
export function repositoryNamed(config: Config, name: string): RepositoryConfig {
  const found = config.repositories.find((r) => r.name === name);
  if (!found) throw new NotFoundError("Repository", name);
  return found;
}

/** The repository that new backups in `zone` go to: the default one if it is there, else the zone's first. Null when there is none. */
export function repositoryIn(config: Config, zone: string): RepositoryConfig | null {
  const inZone = config.repositories.filter((r) => r.zone === zone);
  return inZone.find((r) => r.default) ?? inZone[0] ?? null;
}

/** The backend that new volumes go to: the first. */
export function defaultVolumeBackend(config: Config): VolumeBackendConfig {
  const found = config.volume_backends[0];
  if (!found) throw new ConfigError([{ key: "volume_backends", problem: "at least one is needed" }]);
  return found;
}

/**
 * Calls to files wait in threads of the process, of which there are four unless somebody says otherwise: a place that hangs would hold
 * them all. To be said before the first such call.
 */
export function allowFileThreads(count: number): void {
  process.env["UV_THREADPOOL_SIZE"] ||= String(count);
}
