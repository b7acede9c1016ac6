import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { askAs, auth, startApiOnly } from "../api-only.ts";

const secret = "Recognizable-1234567";
const keystone = { url: `http://${secret}@127.0.0.1:1`, username: secret, password: secret, project: secret };
const config = {
  auth: { ...auth, keystone },
  notifications: { webhooks: [{ name: "pager", url: `http://127.0.0.1:1/${secret}`, secret }] },
  tracing: { endpoint: `http://127.0.0.1:1/${secret}`, headers: { [secret]: secret } },
  quotas: { volumes: 11 },
  log_level: "warn",
};
const repository = {
  credentials: `/nowhere/${secret}`,
  access_key: secret,
  secret_key: secret,
  encryption: { key_command: ["/bin/echo", secret] },
};

it("tells admins and observers what is configured, and nobody a secret", async () => {
  await using instance = await startApiOnly({ config, repository, env: { TEPHRA_KEYSTONE_PASSWORD: secret } });
  const ask = askAs(instance);
  const { status, text, body } = await ask("observer", "GET", "/ops/about");
  expect(status, text).toBe(200);
  const { host, pathname, username, password } = new URL(instance.databaseUrl);
  for (const hidden of [secret, `${host}${pathname}`, instance.redisUrl, ...auth.tokens.map(({ sha256 }) => sha256)]) {
    expect(text).not.toContain(hidden);
  }
  for (const [name, credential] of Object.entries({ username, password })) {
    if (credential.length > 8) expect(text, name).not.toContain(credential);
  }
  expect(text).not.toContain(createHash("sha256").update("admin").digest("hex"));
  const { versions, settings } = body.about;
  expect(versions).toMatchObject({ node: process.versions.node, volume_api: "3.71" });
  const known = Object.fromEntries(settings.map(({ name, ...of }: { name: string }) => [name, of]));
  const set = { is_default: false, is_hidden: false };
  expect(known).toMatchObject({
    "quotas.volumes": { value: 11, ...set },
    "quotas.snapshots": { value: 10, is_default: true, is_hidden: false },
    "auth.mode": { value: "static", ...set },
    "repositories.0.name": { value: "main", ...set },
    "repositories.0.compression": { is_hidden: false },
    "notifications.webhooks.0.name": { value: "pager", ...set },
    "auth.tokens.0.roles": { value: ["reader"], ...set },
    image_transfers: { value: null, is_default: true, is_hidden: false },
  });
  const hidden = [
    ...["database_url", "redis_url", "auth.keystone.url", "auth.keystone.password", "auth.tokens.0.sha256"],
    ...["repositories.0.url", "repositories.0.credentials", "repositories.0.access_key", "repositories.0.secret_key"],
    ...["repositories.0.encryption.key_command", "notifications.webhooks.0.secret", "notifications.webhooks.0.url"],
    ...["tracing.endpoint", "tracing.headers"],
  ];
  for (const name of hidden) expect(known[name], name).toEqual({ value: null, is_default: false, is_hidden: true });

  for (const who of ["reader", "member", "stranger"] as const) {
    expect((await ask(who, "GET", "/ops/about")).status, who).toBe(403);
  }
});
