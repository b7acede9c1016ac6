import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Config, levelOf, loadConfig } from "./config.ts";

/** The configuration of a file with one repository of these settings. */
function configOf(repository: Record<string, unknown>, more: Record<string, unknown> = {}): Config {
  const folder = mkdtempSync(join(tmpdir(), "tephra-config-"));
  try {
    const path = join(folder, "tephra.yml");
    const servers = { database_url: "postgresql://127.0.0.1/x", redis_url: "redis://127.0.0.1:1" };
    writeFileSync(
      path,
      JSON.stringify({ ...servers, repositories: [{ name: "main", url: "posix:/x", ...repository }], ...more }),
    );
    return loadConfig({ TEPHRA_CONFIG: path });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

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
    expect(() => webhooksOf(webhook, webhook)).toThrow(/notifications\.webhooks.*names must differ/);
    expect(() => webhooksOf({ ...webhook, secret: "short" })).toThrow(/webhooks\.0\.secret.*16 characters/);
  });

  it.each(["file:///etc/passwd", "ftp://host/", "gopher://host/", "javascript:1", "billing", "http://user:word@host/"])(
    "is not at %s",
    (url) => {
      expect(() => webhooksOf({ name: "hook", url, secret })).toThrow(/notifications\.webhooks\.0\.url/);
    },
  );
});
