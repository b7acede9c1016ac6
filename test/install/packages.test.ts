import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, expect, inject, onTestFinished, test } from "vitest";
import { packageFile, unpackPackages } from "../../scripts/debian-packages.ts";

beforeEach(() => {
  const cache = mkdtempSync(join(inject("servers").dir, "packages-"));
  const before = process.env["TEPHRA_CACHE_DIR"];
  process.env["TEPHRA_CACHE_DIR"] = cache;
  onTestFinished(() => {
    if (before === undefined) delete process.env["TEPHRA_CACHE_DIR"];
    else process.env["TEPHRA_CACHE_DIR"] = before;
    rmSync(cache, { recursive: true });
  });
});

test("what is installed already is not unpacked, and found where it is", async () => {
  await unpackPackages({ name: "installed", packages: ["dpkg"] }, () => {});
  expect(packageFile("installed", "usr/{bin,sbin}/dpkg")).toBe("/usr/bin/dpkg");
});

test("what was unpacked goes before what is installed, and what is nowhere is named", () => {
  const folder = join(process.env["TEPHRA_CACHE_DIR"] ?? "", "private-pkg/usr/bin");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "dpkg"), "");
  expect(packageFile("private", "usr/bin/dpkg")).toBe(join(folder, "dpkg"));
  expect(() => packageFile("private", "usr/bin/no-such-program")).toThrow("usr/bin/no-such-program");
});
