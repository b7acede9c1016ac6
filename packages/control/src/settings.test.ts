import { describe, expect, it } from "vitest";
import { z } from "zod";
import { ConfigFile } from "./config.ts";
import { settingsOf, shown } from "./settings.ts";

const secret = "Recognizable-1234567";
const hash = "ab".repeat(32);
const scrypt = `$scrypt$ln=15,r=8,p=1$${"A".repeat(22)}$${"B".repeat(43)}`;
const ceph = { conf: `/etc/${secret}`, user: secret, keyring: `/etc/${secret}` };
const login = { username: secret, password: secret, user_domain: secret, project: secret, project_domain: secret };
/** With every setting that is a credential, or a text that may contain one. */
const given = {
  data_dir: "/var/lib/tephra",
  database_url: `postgresql://u:${secret}@127.0.0.1/x`,
  database_direct_url: `postgresql://u:${secret}@127.0.0.1/x`,
  redis_url: `redis://:${secret}@127.0.0.1:1`,
  auth: {
    mode: "keystone",
    tokens: [{ sha256: hash, user_id: secret, project_id: "abcdef-0", roles: ["admin"] }],
    keystone: {
      url: `https://${secret}@keystone`,
      www_authenticate_uri: `https://${secret}/`,
      ca: `/${secret}`,
      ...login,
    },
  },
  tls: { certificate_file: `/${secret}`, private_key_file: `/${secret}`, ca_file: `/${secret}`, ca_dir: `/${secret}` },
  repositories: [
    {
      name: "main",
      url: `s3://bucket?secret_key=${secret}`,
      credentials: `/${secret}`,
      access_key: secret,
      secret_key: secret,
      encryption: { key_command: [secret, secret] },
    },
    {
      name: "other",
      url: `swift:container?key=${secret}`,
      encryption: { key_file: `/${secret}` },
      compression: "zstd",
    },
  ],
  volume_backends: [
    {
      name: "cinder",
      driver: "cinder",
      url: `https://${secret}@cinder`,
      service: login,
      ceph: [{ pools: ["p"], ...ceph }],
    },
  ],
  notifications: { webhooks: [{ name: "pager", url: `https://x/${secret}`, secret, ca: `/${secret}` }] },
  tracing: { endpoint: `https://x/${secret}`, headers: { [secret]: secret } },
  image_transfers: {
    certificate_file: `/${secret}`,
    private_key_file: `/${secret}`,
    key_file: `/${secret}`,
    public_url: `https://${secret}`,
  },
  ovirt: { users: [{ name: `admin@${secret}`, password_hash: scrypt, project_id: "abcdef-0", roles: ["member"] }] },
};

const settings = settingsOf(ConfigFile, ConfigFile.parse(given), given);
const named = new Map(settings.map(({ name, ...of }) => [name, of]));

describe("what is shown of a configuration", () => {
  it("has no credential in it", () => {
    const text = JSON.stringify(settings);
    for (const hidden of [secret, hash, scrypt, "abcdef-0"]) expect(text).not.toContain(hidden);
    expect(settings.filter(({ isHidden }) => isHidden).length).toBeGreaterThan(40);
    for (const { name, value } of settings.filter(({ isHidden }) => isHidden)) expect(value, name).toBeNull();
  });

  it("has numbers, switches and choices, names and folders, and says which are as by default", () => {
    const known = (value: unknown, isDefault: boolean) => ({ value, isDefault, isHidden: false });
    expect(named.get("port")).toEqual(known(8776, true));
    expect(named.get("data_dir")).toEqual(known("/var/lib/tephra", false));
    expect(named.get("repositories.0.name")).toEqual(known("main", false));
    expect(named.get("repositories.0.compression")).toEqual(known("zlib", true));
    expect(named.get("repositories.1.compression")).toEqual(known("zstd", false));
    expect(named.get("volume_backends.0.driver")).toEqual(known("cinder", false));
    expect(named.get("volume_backends.0.ceph.0.pools")).toEqual(known(["p"], false));
    expect(named.get("worker.threads")).toEqual(known(null, true));
    expect(named.get("auth.tokens.0.roles")).toEqual(known(["admin"], false));
  });

  it("hides every text that is not said to be harmless, also in lists and unions", () => {
    const schema = z.object({
      text: z.string().optional(),
      harmless: z.string().register(shown).optional(),
      list: z.array(z.string()).default([]),
      either: z.union([z.string(), z.number()]),
      record: z.record(z.string(), z.number()),
    });
    const value = { text: "a", harmless: "b", list: ["c"], either: 5, record: { d: 1 } };
    expect(settingsOf(schema, value, {}).map(({ name, value }) => [name, value])).toEqual([
      ["text", null],
      ["harmless", "b"],
      ["list", null],
      ["either", null],
      ["record", null],
    ]);
  });
});
