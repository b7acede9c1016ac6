import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { resolve } from "node:path";
import { blockBytesMin, objectBytesMax, zonePattern } from "@tephra/format";
import { parse as parseYaml } from "yaml";
import { z } from "zod";
import { DatabaseUrlError, parseDatabaseUrl } from "./database-url.ts";
import { ConfigError, type ConfigProblem, NotFoundError } from "./errors.ts";
import { httpFields } from "./http-config.ts";
import { ImageTransfers } from "./image-transfer-config.ts";
import { MachineBackups } from "./machine-backup-config.ts";
import { ovirtFields } from "./ovirt-config.ts";
import { parseRedisUrl } from "./redis-options.ts";
import { type Setting, settingsOf, shown } from "./settings.ts";
import { Tls } from "./tls-config.ts";
import { Tracing } from "./tracing-config.ts";
import { besideIn, placeName as name, provisions, VolumeBackend, type VolumeBackendConfig } from "./volume-backends.ts";

const MiB = 1024 * 1024;

const quotaLimit = z.int().min(-1).max(2_147_483_647);

/** Folder under the data folder through which files are imported and exported, unless `import_roots` names others. */
export const exchangeFolder = "exchange";

/** Roles of a static token, named as in OpenStack. `observer` sees every project and changes nothing. */
export const roles = ["reader", "member", "observer", "admin"] as const;
export type Role = (typeof roles)[number];

const Token = z.strictObject({
  sha256: z.string().regex(/^[0-9a-fA-F]{64}$/, "must be the SHA-256 hash of the token as 64 hexadecimal digits"),
  user_id: z.string().min(1),
  project_id: z.string().regex(/^[0-9a-f-]+$/, "may contain only the characters 0-9, a-f and -"),
  roles: z.array(z.enum(roles)).min(1),
});

/**
 * Every value of Cinder's option, with the level of its codec: Cinder's own defaults. Where compression is off, zeros are still compressed
 * with zlib.
 */
export const compressionLevels = { zlib: 6, gzip: 6, bz2: 9, bzip2: 9, zstd: 3, none: 6, off: 6, no: 6 } as const;
export type Compression = keyof typeof compressionLevels;

/** A URL of which every parameter is known and can be honoured. */
const databaseUrl = (variable: string) =>
  z.string().superRefine((url, context) => {
    try {
      parseDatabaseUrl(url);
    } catch (error) {
      if (!(error instanceof DatabaseUrlError)) throw error;
      context.addIssue({ code: "custom", message: `${error.message} (${variable})` });
    }
  });

/** Encoders that produce zlib streams. */
export const zlibEncoders = ["zlib", "isal"] as const;
export type ZlibEncoder = (typeof zlibEncoders)[number];
/** The ISA-L level that comes closest to zlib's default. */
const isalLevel = 2;

/** Where a repository's master keys come from: new backups in it are encrypted. Read by the worker only. */
const Encryption = z
  .strictObject({
    key_file: z.string().min(1).optional(),
    /** A program with its arguments, run without a shell. */
    key_command: z.array(z.string()).min(1).optional(),
  })
  .refine((e) => (e.key_file === undefined) !== (e.key_command === undefined), {
    error: "requires exactly one of key_file and key_command",
  });

const zone = z
  .string()
  .regex(zonePattern, "must consist of printable ASCII characters other than / and \\")
  .register(shown);

const Repository = z
  .strictObject({
    name,
    url: z
      .string()
      .regex(
        /^(?:posix|nfs|s3|swift):.+/,
        "must be a repository URL: posix:/dir, nfs:server:/export, s3://bucket or swift:container",
      ),
    /** A file with the repository's secrets, readable by the worker only. */
    credentials: z.string().min(1).optional(),
    access_key: z.string().min(1).optional(),
    secret_key: z.string().min(1).optional(),
    encryption: Encryption.optional(),
    /** Availability zone of the backups in it; part of object names in S3 and Swift. */
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
    /** Whether objects in a folder are read back before they get their final name; if omitted: on NFS only. */
    read_back: z.boolean().optional(),
    /** Maximum number of concurrent tasks on it, across all workers; null: limited by the slots only. */
    max_running_tasks: z.int().min(1).nullable().default(null),
    /** For how long deleted backups can be brought back, unless the policy that made them says otherwise; 0: not at all. */
    deletion_delay_hours: z.number().min(0).max(87_600).default(0),
  })
  .refine((r) => r.zlib_encoder === "zlib" || r.compression === "zlib" || r.compression === "gzip", {
    path: ["zlib_encoder"],
    error: "isal requires compression to be zlib or gzip",
  })
  .refine((r) => r.object_bytes % r.block_bytes === 0, {
    path: ["object_bytes"],
    error: "must be a multiple of block_bytes",
  });

/** A file of PEM certificates, one of which must be the root of the server's chain; null: the system's trust store. */
const ca = z.string().min(1).nullable().default(null);

/** The Keystone v3 that validates tokens, and the user that the service asks it as. */
const Keystone = z.strictObject({
  /** Its URL, with or without `/v3` at the end. */
  url: z
    .string()
    .regex(/^https?:\/\/[^\s]+$/, "must be an http:// or https:// URL")
    .transform((url) => url.replace(/\/+$/, "").replace(/\/v3$/, "")),
  username: z.string().min(1),
  password: z.string().min(1),
  user_domain: z.string().min(1).default("Default"),
  project: z.string().min(1).default("service"),
  project_domain: z.string().min(1).default("Default"),
  /** The URL to which refused clients are sent for a token; null: `url`. */
  www_authenticate_uri: z.string().min(1).nullable().default(null),
  /** How long a response is cached: a revoked token keeps working for at most this long. */
  cache_ms: z.int().min(0).default(60_000),
  /** Maximum number of cached responses. */
  cache_tokens_max: z.int().min(1).default(10_000),
  timeout_ms: z.int().min(100).default(10_000),
  ca,
});

/** Targets of event notifications. Secrets sign what is sent. */
const Notifications = z
  .strictObject({
    webhooks: z
      .array(
        z.strictObject({
          name,
          /** The receiver learns of every project's events: configured here only, never taken from a request. */
          url: z
            .url({ protocol: /^https?$/, error: "must be an http:// or https:// URL" })
            .refine(
              (url) => !/^https?:\/\/[^/?#]*@/i.test(url),
              "must not contain a user name or password; deliveries are authenticated with `secret`",
            ),
          secret: z.string().min(16, "must have at least 16 characters"),
          ca,
        }),
      )
      .default([])
      .refine((items) => new Set(items.map((i) => i.name)).size === items.length, "names must be unique"),
    /** Key of a Redis stream; null: none. */
    redis_stream: z.string().min(1).register(shown).nullable().default(null),
    /** The stream is trimmed to about this many entries. */
    redis_stream_entries_max: z.int().min(1).default(10_000),
    log: z.boolean().default(false),
    /** After this many attempts a delivery is dead, and waits for an admin. */
    attempts_max: z.int().min(1).default(12),
    /** Pause after the first attempt; doubles with each further one. */
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

/** The configuration file, before the environment is applied. */
export const ConfigFile = z
  .strictObject({
    host: z.string().min(1).register(shown).default("127.0.0.1"),
    port: z.coerce.number().int().min(0).max(65_535).default(8776),
    /** Scheme, host and path at the start of links in responses; null: taken from the request. */
    public_endpoint: z
      .string()
      .regex(/^https?:\/\/[^\s]+$/, "must be an http:// or https:// URL")
      .register(shown)
      .transform((url) => url.replace(/\/+$/, ""))
      .nullable()
      .default(null),
    ...httpFields,
    tls: Tls,
    /** Maximum page size of a list. */
    list_max: z.int().min(1).max(100_000).default(1000),
    /** This machine's name in the list of services; null: its host name. */
    host_name: z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,253}$/, "must be a host name")
      .register(shown)
      .nullable()
      .default(null),
    /** Zone of volumes, and of backups in a repository that names no zone. */
    availability_zone: zone.default("nova"),
    data_dir: z.string().min(1).register(shown),
    database_url: databaseUrl("DATABASE_URL"),
    /** Direct URL of the same database, bypassing a pooler: for the doorbell (LISTEN/NOTIFY) and migrations; null: `database_url`. */
    database_direct_url: databaseUrl("DATABASE_DIRECT_URL").nullable().default(null),
    redis_url: z.string().superRefine(checkRedisUrl),
    auth: z
      .strictObject({
        mode: z.enum(["none", "static", "keystone"]).default("none"),
        tokens: z.array(Token).default([]),
        keystone: Keystone.nullable().default(null),
        /** False: any token of a project, with any role, may do what a member may. */
        enforce_new_defaults: z.boolean().default(true),
      })
      .prefault({})
      .refine((a) => a.mode !== "static" || a.tokens.length > 0, {
        path: ["tokens"],
        error: "mode static requires at least one token",
      })
      .refine((a) => a.mode !== "keystone" || a.keystone !== null, {
        path: ["keystone"],
        error: "mode keystone requires url, username and password",
      }),
    repositories: z.array(Repository).min(1).refine(unique, "names must be unique"),
    volume_backends: z.array(VolumeBackend).min(1).refine(unique, "names must be unique"),
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
    /** Limits on user-defined metadata of one volume, snapshot or backup. */
    metadata: z
      .strictObject({
        /** Number of pairs; -1: unlimited. */
        items_max: z.int().min(-1).default(128),
        /** Total size of keys and values, in bytes of UTF-8. */
        bytes_max: z.int().min(1024).max(MiB).default(32_768),
      })
      .prefault({}),
    notifications: Notifications,
    /** How long messages to users are kept: 30 days, as in Cinder. */
    message_ttl_seconds: z.int().min(1).default(2_592_000),
    /** What an import checks: the metadata and the listing only, or also every byte of the chain. */
    import_verify: z.enum(["listing", "deep"]).default("listing"),
    /** Scheduled verifications. */
    verify: z
      .strictObject({
        /** Interval at which a sample of the backups not verified within it is verified; null: never. */
        interval_hours: z.number().positive().nullable().default(null),
        /** Share of all available backups verified each time, in percent; those that were not verified for the longest time go first. */
        sample_percent: z.number().positive().max(100).default(100),
        mode: z.enum(["quick", "deep", "drill"]).default("deep"),
      })
      .prefault({}),
    /** Garbage collection of what is no longer needed. */
    reaper: z
      .strictObject({
        /** Null: on request only. */
        interval_hours: z.number().positive().nullable().default(24),
        /** Anything younger is left alone; must exceed the clock difference between stores and workers. */
        grace_minutes: z.number().min(0).default(60),
      })
      .prefault({}),
    audit: z
      .strictObject({
        /** Audit log retention. */
        retention_days: z.number().positive().default(90),
      })
      .prefault({}),
    operations: z
      .strictObject({
        /** How long ended operations are kept; their tasks are removed after a week at most. */
        retention_days: z.number().min(1).default(90),
      })
      .prefault({}),
    protection: z
      .strictObject({
        /** The newest good backup of a volume should be no older, in hours, unless its policy says otherwise. */
        target_hours: z.int().min(1).default(26),
      })
      .prefault({}),
    instances: z
      .strictObject({
        /** Folders that may contain the sockets of hypervisors and guest agents. */
        qmp_socket_roots: z.array(z.string().min(1).register(shown)).default([]),
      })
      .prefault({}),
    instance_groups: z
      .strictObject({
        /** How long a request without `async` waits for its operation to finish; after that it is answered like one with it. */
        sync_wait_timeout_ms: z.int().min(0).default(3_600_000),
        /** Status code of the response to `async`. */
        async_status_code: z.union([z.literal(201), z.literal(202)]).default(201),
        /** Longest time for which a guest is kept from writing. */
        freeze_limit_ms: z.int().min(100).default(10_000),
        /** Longest time for which one stays frozen that a client has frozen by itself. */
        manual_freeze_limit_ms: z.int().min(100).max(120_000).default(60_000),
        /** Fail where no guest agent can freeze the guest's file systems, instead of taking a crash-consistent backup. */
        require_consistency: z.boolean().default(false),
      })
      .prefault({}),
    ...ovirtFields,
    /** Null: no images are transferred. */
    image_transfers: ImageTransfers.nullable().default(null),
    machine_backups: MachineBackups,
    import_roots: z.array(z.string().min(1).register(shown)).default([]),
    /** Bytes of a volume that one task copies; rounded down to whole object windows, at least one. */
    range_bytes: z
      .int()
      .min(4096)
      .default(512 * MiB),
    worker: z
      .strictObject({
        /** Concurrent tasks of one worker process. */
        slots: z.int().min(1).max(256).default(4),
        /** Threads for hashing and compression; null: one per core. */
        threads: z.int().min(1).max(256).nullable().default(null),
        /** Bytes of window buffers, shared by all slots. */
        memory_bytes: z
          .int()
          .min(8 * MiB)
          .default(128 * MiB),
        lease_ms: z.int().min(500).default(10_000),
        heartbeat_ms: z.int().min(100).default(3_000),
        /** A worker without a heartbeat for this long is down; null: four heartbeats. */
        down_ms: z.int().min(200).nullable().default(null),
        /** A stopping worker hands back what is not finished by then. */
        drain_ms: z.int().min(0).default(5_000),
      })
      .prefault({})
      .refine((w) => w.heartbeat_ms * 2 <= w.lease_ms, {
        path: ["heartbeat_ms"],
        error: "must be at most half of lease_ms",
      }),
    tasks: z
      .strictObject({
        /** A job that nobody has claimed for this long is dispatched again. */
        dispatch_timeout_ms: z.int().min(500).default(30_000),
        /** A task that no live worker is able to run fails after this long, as in Cinder. */
        unplaced_timeout_ms: z.int().min(500).default(60_000),
        /**
         * A task without any progress for this long is abandoned, and the place that it waits for is considered unreachable; some kinds get
         * longer.
         */
        quiet_ms: z.int().min(500).default(60_000),
        reconcile_ms: z.int().min(100).default(2_000),
        attempts_max: z.int().min(1).default(3),
        claims_max: z.int().min(1).default(100),
        backoff_ms: z.int().min(0).default(1_000),
      })
      .prefault({}),
    dispatcher: z
      .strictObject({
        /** Concurrent tasks of one project while others have work, too; null: unlimited. */
        project_cap: z.int().min(1).nullable().default(null),
      })
      .prefault({}),
    /** Request limits per project and API process. */
    rate_limits: z
      .strictObject({
        /** Requests within the window; null: unlimited. */
        requests: z.int().min(1).nullable().default(null),
        /** Of those, requests that may change something: all but GET and HEAD. */
        changes: z.int().min(1).nullable().default(null),
        window_seconds: z.int().min(1).default(60),
      })
      .prefault({}),
    console: z
      .strictObject({
        /** How long a browser that nobody uses stays signed in. */
        idle_minutes: z.int().min(1).max(1_440).default(30),
      })
      .prefault({}),
    /** Interval at which each process logs its memory, descriptors and event-loop delay. */
    vitals_ms: z.int().min(1_000).default(60_000),
    /** Null: nothing is traced. */
    tracing: Tracing.nullable().default(null),
    log_level: z.enum(["trace", "debug", "info", "warn", "error", "silent"]).default("info"),
  })
  .superRefine((config, context) => {
    if (config.auth.mode === "none" && !isLoopback(config.host)) {
      context.addIssue({
        code: "custom",
        path: ["host"],
        message: "must be a loopback address when auth.mode is none",
      });
    }
    const { tls } = config;
    if (config.auth.mode === "none" && tls.port !== null && !isLoopback(tls.host ?? config.host)) {
      context.addIssue({
        code: "custom",
        path: ["tls", "host"],
        message: "must be a loopback address when auth.mode is none",
      });
    }
    const images = config.image_transfers;
    const isPlain = images !== null && images.certificate_file === null && tls.port === null;
    if (isPlain && !isLoopback(images.host)) {
      context.addIssue({
        code: "custom",
        path: ["image_transfers", "host"],
        message: "must be a loopback address without certificate_file, or tls.port",
      });
    }
    const beside = besideIn(config.volume_backends);
    if (beside !== null && config.volume_backends.length > 1) {
      const message = `must have ${beside.name} alone: volumes of our own and those of a Cinder are never mixed`;
      context.addIssue({ code: "custom", path: ["volume_backends"], message });
    }
    if (beside !== null && config.auth.mode !== "keystone") {
      const message = `must be keystone, since the volumes of ${beside.name} are a Cinder's`;
      context.addIssue({ code: "custom", path: ["auth", "mode"], message });
    }
    if (config.repositories.filter((r) => r.default).length > 1) {
      context.addIssue({
        code: "custom",
        path: ["repositories"],
        message: "only one repository can be the default",
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
 * The whole configuration, validated. Paths are absolute. `hostName` is this machine's, for rows and logs, unless `host_name` sets another;
 * `configFile` is the file that was read, null when there was none; `settings` is what may be shown of it.
 */
export type Config = Parsed & { hostName: string; configFile: string | null; settings: readonly Setting[] };
export type KeystoneConfig = z.infer<typeof Keystone>;
export type RepositoryConfig = Parsed["repositories"][number];

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
    throw new ConfigError(
      [{ key: "TEPHRA_CONFIG", problem: `${path} is not valid YAML: ${(cause as Error).message}` }],
      {
        cause,
      },
    );
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ConfigError([{ key: "TEPHRA_CONFIG", problem: `${path} must contain a mapping of keys to values` }]);
  }
  return value as Record<string, unknown>;
}

/** A variable, or the contents of the file named by `<name>_FILE`: the usual way to pass secrets to containers. */
function valueOrFile(env: Readonly<Record<string, string | undefined>>, name: string): string | undefined {
  const path = env[`${name}_FILE`];
  if (!path) return env[name];
  if (env[name]) throw new ConfigError([{ key: name, problem: `cannot be set together with ${name}_FILE` }]);
  try {
    return readFileSync(path, "utf8").trim();
  } catch (cause) {
    throw new ConfigError([{ key: `${name}_FILE`, problem: `cannot be read: ${(cause as Error).message}` }], { cause });
  }
}

/** The password of Keystone's user may come from the environment, so that the file need not contain a secret. */
function addSecret(raw: Record<string, unknown>, password: string | undefined): void {
  const auth = raw["auth"] as { keystone?: object } | undefined;
  if (password && auth?.keystone) raw["auth"] = { ...auth, keystone: { ...auth.keystone, password } };
}

/** Also that of the user who asks Cinder. */
function addCinderSecret(raw: Record<string, unknown>, password: string | undefined): void {
  if (!password || !Array.isArray(raw["volume_backends"])) return;
  raw["volume_backends"] = raw["volume_backends"].map((backend: { service?: object } | null) =>
    backend?.service ? { ...backend, service: { ...backend.service, password } } : backend,
  );
}

const problemsOf = (issue: z.core.$ZodIssue): ConfigProblem[] =>
  issue.code === "unrecognized_keys"
    ? issue.keys.map((key) => ({ key: [...issue.path, key].join("."), problem: "is not a known key" }))
    : [{ key: issue.path.join(".") || "(file)", problem: issue.message }];

/**
 * Environment and file (TEPHRA_CONFIG, YAML) → Config; the environment wins. The only reader of the environment. Without a file: auth
 * `none`, one posix repository, one `file` backend and a folder for imports and exports under the data folder.
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
  }).filter(([, value]) => value !== undefined && value !== "");
  const raw: Record<string, unknown> = { ...file, ...Object.fromEntries(overrides) };
  const workingDir = resolve(env["TEPHRA_WORKING_DIR"] || ".");
  addSecret(raw, env["TEPHRA_KEYSTONE_PASSWORD"]);
  addCinderSecret(raw, env["TEPHRA_CINDER_PASSWORD"]);
  const given = { ...raw };
  const dataDir = resolve(workingDir, typeof raw["data_dir"] === "string" ? raw["data_dir"] : "var");
  raw["data_dir"] = dataDir;
  raw["repositories"] ??= [{ name: "main", url: `posix:${resolve(dataDir, "repository")}`, default: true }];
  raw["volume_backends"] ??= [{ name: "files", driver: "file", path: resolve(dataDir, "volumes") }];
  raw["import_roots"] ??= [resolve(dataDir, exchangeFolder)];
  const parsed = ConfigFile.safeParse(raw);
  if (!parsed.success) {
    throw new ConfigError(parsed.error.issues.flatMap(problemsOf));
  }
  const configFile = env["TEPHRA_CONFIG"] ? resolve(env["TEPHRA_CONFIG"]) : null;
  const settings = settingsOf(ConfigFile, parsed.data, given);
  return { ...parsed.data, hostName: parsed.data.host_name ?? hostname(), configFile, settings };
}

/** What opens a repository, beside its URL. */
export function repositorySettings(settings: RepositoryConfig) {
  const { zone, credentials, access_key: accessKey, secret_key: secretKey, read_back: readBack } = settings;
  const { key_file: keyFile, key_command: keyCommand } = settings.encryption ?? {};
  return {
    zone,
    credentials,
    accessKey,
    secretKey,
    readBack,
    encryption: settings.encryption && { keyFile, keyCommand },
  };
}

/**
 * What opens a volume backend. Where another service has the volumes, it is asked as its configured user, or as ours of Keystone, and what is
 * made there is marked with the id of this installation.
 */
export function backendSettings(
  config: Config,
  settings: VolumeBackendConfig,
  installation: () => Promise<string> = async () => "",
) {
  const beside = besideIn([settings]);
  return beside === null
    ? (settings as Exclude<VolumeBackendConfig, { driver: "cinder" }>)
    : {
        ...beside,
        service: serviceOf(config, beside.service),
        installation,
        lockFolder: resolve(config.data_dir, "writers"),
      };
}

/** The service beside which this installation works, and as whom it is asked; null: it has volumes of its own. */
export function besideSettings(config: Config) {
  const beside = besideIn(config.volume_backends);
  return beside && { ...beside, service: serviceOf(config, beside.service) };
}

function serviceOf(config: Config, service: NonNullable<ReturnType<typeof besideIn>>["service"]) {
  const { keystone } = config.auth;
  if (keystone === null) throw new ConfigError([{ key: "auth.keystone", problem: "is required" }]);
  const { url, username, password, user_domain, project, project_domain, timeout_ms, ca: trusted } = keystone;
  const own = { username, password, user_domain, project, project_domain };
  return { url, timeout_ms, ca: trusted, ...(service ?? own) };
}

/** The level passed to a repository's encoder. */
export function levelOf({ compression, zlib_encoder: zlibEncoder }: RepositoryConfig): number {
  return zlibEncoder === "isal" ? isalLevel : compressionLevels[compression];
}

/** The repository for new backups: the one marked `default`, else the first. */
export function defaultRepository(config: Config): RepositoryConfig {
  const found = config.repositories.find((r) => r.default) ?? config.repositories[0];
  if (!found) throw new ConfigError([{ key: "repositories", problem: "at least one is required" }]);
  return found;
}

/** @throws NotFoundError for a name that is not configured */
export function repositoryNamed(config: Config, name: string): RepositoryConfig {
  const found = config.repositories.find((r) => r.name === name);
  if (!found) throw new NotFoundError("Repository", name);
  return found;
}

/** The repository for new backups in `zone`: the default one if it is in that zone, else the zone's first. Null when there is none. */
export function repositoryIn(config: Config, zone: string): RepositoryConfig | null {
  const inZone = config.repositories.filter((r) => r.zone === zone);
  return inZone.find((r) => r.default) ?? inZone[0] ?? null;
}

/** The backend for new volumes: the first in which such can be made. Where there is none, the first. */
export function defaultVolumeBackend(config: Config): VolumeBackendConfig {
  const found = config.volume_backends.find(provisions) ?? config.volume_backends[0];
  if (!found) throw new ConfigError([{ key: "volume_backends", problem: "at least one is required" }]);
  return found;
}

/**
 * Sets the size of the process's thread pool for file calls, which has four threads by default: a single hanging place would occupy them
 * all. Must be called before the first file call.
 */
export function allowFileThreads(count: number): void {
  process.env["UV_THREADPOOL_SIZE"] ||= String(count);
}
