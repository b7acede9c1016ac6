import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { besideSettings, type Config, ConfigFile, levelOf, loadConfig } from "./config.ts";
import { isOwnPlace, ownPlaces } from "./own-places.ts";

/** The configuration from a file with one repository that has these settings. */
function configOf(
  repository: Record<string, unknown>,
  more: Record<string, unknown> = {},
  env: Record<string, string> = {},
): Config {
  const folder = mkdtempSync(join(tmpdir(), "tephra-config-"));
  try {
    const path = join(folder, "tephra.yml");
    const servers = { database_url: "postgresql://127.0.0.1/x", redis_url: "redis://127.0.0.1:1" };
    writeFileSync(
      path,
      JSON.stringify({ ...servers, repositories: [{ name: "main", url: "posix:/x", ...repository }], ...more }),
    );
    return loadConfig({ TEPHRA_CONFIG: path, ...env });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("what the service itself uses", () => {
  const config = configOf(
    { url: "posix:/srv/backups", encryption: { key_file: "/etc/keys" } },
    {
      data_dir: "/var/lib/tephra",
      volume_backends: [{ name: "files", driver: "file", path: "/srv/volumes" }],
      import_roots: ["/srv"],
      repositories: [
        { name: "a", url: "posix:/srv/backups", credentials: "/etc/secrets", encryption: { key_file: "/etc/keys" } },
        { name: "b", url: "nfs:server:/x?mount_base=/srv/mnt" },
        { name: "c", url: "swift:container?auth_url=http://127.0.0.1/&key_file=%2Fetc%2Fswift" },
      ],
    },
  );

  it("is every path of its configuration, the file itself, and its folders in the data folder", () => {
    const places = ownPlaces(config);
    const expected = ["/srv/backups", "/srv/volumes", "/srv/mnt", "/etc/secrets", "/etc/keys", "/etc/swift"];
    expect(places).toEqual(expect.arrayContaining([...expected, config.configFile]));
    for (const name of ["log", "postgres", "redis", "repository", "run", "volumes"]) {
      expect(places).toContain(`/var/lib/tephra/${name}`);
    }
    for (const path of ["/srv/volumes/volume-x", "/srv/backups", "/srv/mnt/x/y"]) {
      expect(isOwnPlace(path, places), path).toBe(true);
    }
    for (const path of ["/srv/volumes-too", "/srv/in/a", "/var/lib/tephra/exchange/a", "/srv"]) {
      expect(isOwnPlace(path, places), path).toBe(false);
    }
  });

  it("holds no folder that users are given by default", () => {
    const servers = { DATABASE_URL: "postgresql://127.0.0.1/x", REDIS_URL: "redis://127.0.0.1:1" };
    const { import_roots: roots } = loadConfig({ ...servers, TEPHRA_DATA_DIR: "/data" });
    expect(roots).toEqual(["/data/exchange"]);
    expect(isOwnPlace("/data/exchange", ownPlaces(loadConfig({ ...servers, TEPHRA_DATA_DIR: "/data" })))).toBe(false);
  });
});

describe("the zlib encoder of a repository", () => {
  it.each(["zlib", "gzip", "ZLIB", undefined])(
    "can be isal where compression is %s, at a level of its own",
    (compression) => {
      const plain = configOf({ compression }).repositories[0];
      const fast = configOf({ compression, zlib_encoder: "isal" }).repositories[0];
      expect(plain && [plain.zlib_encoder, levelOf(plain)]).toEqual(["zlib", 6]);
      expect(fast && [fast.zlib_encoder, levelOf(fast)]).toEqual(["isal", 2]);
    },
  );

  it.each(["bz2", "zstd", "none", "off"])("cannot be isal where compression is %s", (compression) => {
    expect(() => configOf({ compression, zlib_encoder: "isal" })).toThrow(
      /repositories\.0\.zlib_encoder.*zlib or gzip/,
    );
  });

  it("is one that is known", () => {
    expect(() => configOf({ zlib_encoder: "pigz" })).toThrow(/zlib_encoder/);
  });
});

describe("a webhook", () => {
  const secret = "sixteen letters.";
  const webhooksOf = (...webhooks: object[]) => configOf({}, { notifications: { webhooks } }).notifications.webhooks;

  it("has a name, an address and a secret", () => {
    const webhook = { name: "billing", url: "https://billing.example:8443/hooks?team=1", secret };
    expect(webhooksOf(webhook, { ...webhook, name: "other", url: "http://127.0.0.1/a@b" })).toHaveLength(2);
    expect(() => webhooksOf(webhook, webhook)).toThrow(/notifications\.webhooks.*names must be unique/);
    expect(() => webhooksOf({ ...webhook, secret: "short" })).toThrow(/webhooks\.0\.secret.*16 characters/);
  });

  it.each(["file:///etc/passwd", "ftp://host/", "gopher://host/", "javascript:1", "billing", "http://user:word@host/"])(
    "is not at %s",
    (url) => {
      expect(() => webhooksOf({ name: "hook", url, secret })).toThrow(/notifications\.webhooks\.0\.url/);
    },
  );
});

it.each(["crash_at", "log_levels"])("a key that it does not know is refused: %s", (key) => {
  expect(() => configOf({}, { [key]: "copy:1" })).toThrow(new RegExp(`^  ${key}: is not a known key$`, "m"));
});

interface KeySchema {
  anyOf?: KeySchema[];
  oneOf?: KeySchema[];
  const?: unknown;
  type?: string;
  default?: unknown;
  items?: KeySchema;
  properties?: Record<string, KeySchema>;
  required?: string[];
}

/** Every key that a file can have, lists with `[]`, and its value when the file does not set it. */
function keysOf(schema: KeySchema, path = ""): [key: string, fallback: string][] {
  const object = schema.anyOf?.find((one) => one.type !== "null") ?? schema;
  return Object.entries(object.properties ?? {}).flatMap(([name, value]) => {
    const key = path === "" ? name : `${path}.${name}`;
    const inner = value.anyOf?.find((one) => one.type !== "null") ?? value;
    if (inner.properties) return keysOf(inner, key);
    if (inner.items?.oneOf) return keysOfUnion(inner.items.oneOf, `${key}[]`);
    if (inner.items?.properties) return keysOf(inner.items, `${key}[]`);
    const fallback = object.required?.includes(name) ? "required" : JSON.stringify(value.default ?? null);
    return [[key, fallback] as [string, string]];
  });
}

/** The keys that every driver has, once, and those that each has of its own with its name behind them. */
function keysOfUnion(variants: readonly KeySchema[], path: string): [key: string, fallback: string][] {
  const shared = [`${path}.name`, `${path}.driver`];
  const keys = variants.flatMap((variant) =>
    keysOf(variant, path).map(([key, fallback]): [string, string] => [
      shared.includes(key) ? key : `${key} (${variant.properties?.["driver"]?.const})`,
      fallback,
    ]),
  );
  return [...new Map(keys)];
}

describe("docs/configuration.md", () => {
  const page = readFileSync(new URL("../../../docs/configuration.md", import.meta.url), "utf8");
  const rows = [...page.matchAll(/^\| `([a-z_.[\]0-9]+`(?: \(`[a-z]+`\))?) \| ([^|]+) \| ([^|]+) \|([^|]*)\|$/gm)].map(
    ([row, key = "", fallback]) => [row, key.replaceAll("`", ""), fallback],
  );
  const keys = keysOf(z.toJSONSchema(ConfigFile, { io: "input", unrepresentable: "any" }) as KeySchema);

  it("has every key of a configuration once, and no other", () => {
    expect(keys.length).toBeGreaterThan(70);
    expect(rows.map(([, key]) => key).sort()).toEqual(keys.map(([key]) => key).sort());
  });

  it("has the defaults that hold", () => {
    // Defaults derived from the environment or from another key are documented in words.
    const inWords = ["data_dir", "import_roots", "repositories[].read_back"];
    for (const [, key = "", told = ""] of rows) {
      const fallback = keys.find(([name]) => name === key)?.[1];
      const said = told.trim();
      if (inWords.includes(key)) continue;
      const optional = fallback === "null" && ["none", "`availability_zone`"].includes(said);
      expect(optional ? "null" : said.replaceAll("`", ""), key).toBe(fallback);
    }
  });

  it("names every option that Cinder has for backups", () => {
    const families = [/backup_gcs_\*/, /glusterfs_backup_\*/];
    for (const family of families) expect(page).toMatch(family);
    for (const option of cinderOptions) {
      const short = option.replace(/^backup_(?:swift|s3)/, "");
      expect(page.includes(`\`${option}\``) || page.includes(`\`${short}\``), option).toBe(true);
    }
  });
});

/** Every backup option of Cinder, except those of drivers that have no counterpart here. */
const cinderOptions = `backup_driver backup_driver_init_check_interval backup_driver_stats_polling_interval
  backup_service_inithost_offload backup_native_threads_pool_size backup_workers backup_max_operations backup_use_same_host
  backup_use_temp_snapshot backup_compression_algorithm backup_create_containers backup_metadata_version
  backup_object_number_per_notification backup_timer_interval backup_name_template quota_backups quota_backup_gigabytes
  storage_availability_zone service_down_time osapi_max_limit resource_query_filters_file public_endpoint message_ttl
  message_reap_interval backup_swift_url backup_swift_auth_url swift_catalog_info keystone_catalog_info backup_swift_auth
  backup_swift_auth_version backup_swift_tenant backup_swift_user backup_swift_key backup_swift_user_domain
  backup_swift_project_domain backup_swift_project backup_swift_region_name backup_swift_container
  backup_swift_create_storage_policy backup_swift_object_size backup_swift_block_size backup_swift_retry_attempts
  backup_swift_retry_backoff backup_swift_enable_progress_timer backup_swift_ca_cert_file backup_swift_auth_insecure
  backup_swift_service_auth backup_s3_endpoint_url backup_s3_store_access_key backup_s3_store_secret_key
  backup_s3_store_bucket backup_s3_object_size backup_s3_block_size backup_s3_enable_progress_timer backup_s3_http_proxy
  backup_s3_https_proxy backup_s3_timeout backup_s3_max_pool_connections backup_s3_retry_max_attempts backup_s3_retry_mode
  backup_s3_verify_ssl backup_s3_ca_cert_file backup_s3_md5_validation backup_s3_sse_customer_key
  backup_s3_sse_customer_algorithm backup_file_size backup_sha_block_size_bytes backup_enable_progress_timer
  backup_posix_path backup_container backup_mount_point_base backup_share backup_mount_options backup_mount_attempts`.split(
  /\s+/,
);

describe("the URLs of the servers", () => {
  it("come from a variable, or from the file that a variable names", () => {
    const folder = mkdtempSync(join(tmpdir(), "tephra-config-"));
    try {
      const path = join(folder, "database_url");
      writeFileSync(path, "postgresql://user:secret@127.0.0.1/x\n");
      const redis = { REDIS_URL: "redis://127.0.0.1:1" };
      const config = loadConfig({ ...redis, DATABASE_URL_FILE: path });
      expect(config.database_url).toBe("postgresql://user:secret@127.0.0.1/x");
      expect(() => loadConfig({ ...redis, DATABASE_URL_FILE: path, DATABASE_URL: "postgresql://other/x" })).toThrow(
        /DATABASE_URL: cannot be set together with DATABASE_URL_FILE/,
      );
      expect(() => loadConfig({ ...redis, DATABASE_URL_FILE: join(folder, "none") })).toThrow(/DATABASE_URL_FILE/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe("beside a Cinder", () => {
  const cinder = { name: "cinder", driver: "cinder" };
  const auth = { mode: "keystone", keystone: { url: "http://k:5000", username: "u", password: "p" } };

  it("its backend is the only one, and Keystone's tokens are taken", () => {
    const file = { name: "files", driver: "file", path: "/v" };
    expect(() => configOf({}, { auth, volume_backends: [cinder, file] })).toThrow(
      "volume_backends: must have cinder alone: volumes of our own and those of a Cinder are never mixed",
    );
    expect(() => configOf({}, { volume_backends: [cinder] })).toThrow(
      "auth.mode: must be keystone, since the volumes of cinder are a Cinder's",
    );
  });

  it("it is asked as the user of Keystone, or as its own, whose password the environment may have", () => {
    const service = { username: "t", password: "file" };
    const own = configOf({}, { auth, volume_backends: [{ ...cinder, service }] }, { TEPHRA_CINDER_PASSWORD: "secret" });
    expect(besideSettings(own)?.service).toMatchObject({ url: "http://k:5000", username: "t", password: "secret" });
    const shared = configOf({}, { auth, volume_backends: [cinder] });
    expect(besideSettings(shared)?.service).toMatchObject({ username: "u", password: "p", project: "service" });
  });
});
