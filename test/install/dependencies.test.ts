import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { gunzipSync } from "node:zlib";
import { expect, it } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { allowedScripts, auditDependencies, lockFileProblems, readLockFile } from "../../scripts/dependencies.mjs";
import { freePort } from "../../scripts/spawn-program.ts";

it("nothing is installed from an address, without a digest or with a script that nobody allowed", () => {
  const [lock, scripts] = [readLockFile(root), allowedScripts(root)];
  expect(lockFileProblems(lock, scripts)).toEqual([]);
  const wrong = {
    "node_modules/a": { resolved: "git+ssh://git@somewhere/a.git#1", integrity: "sha512-x" },
    "node_modules/a/node_modules/b": {},
    "node_modules/c": { integrity: "sha512-x", hasInstallScript: true },
    "node_modules/own": { link: true, resolved: "packages/own" },
    "packages/own": {},
  };
  const problems = lockFileProblems({ packages: { ...lock.packages, ...wrong } }, scripts);
  expect(problems.map((problem) => problem.split(" ")[0])).toEqual([
    "node_modules/a",
    "node_modules/a/node_modules/b",
    "node_modules/c",
  ]);
  expect(lockFileProblems({ packages: wrong }, { c: false })).toHaveLength(2);
});

/** The part of a registry that npm asks for what is known of packages. */
async function startAdvisories(known: Record<string, unknown>) {
  const asked: string[] = [];
  const server = createServer(async (req, res) => {
    if (req.method !== "POST" || !req.url?.endsWith("/advisories/bulk")) return void res.writeHead(404).end("{}");
    const body = await buffer(req);
    const text = req.headers["content-encoding"] === "gzip" ? gunzipSync(body).toString() : body.toString();
    asked.push(...Object.keys(JSON.parse(text)));
    res.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(known));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    asked,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

it("a known weakness of what the product uses is an error; a registry that cannot be asked is none", {
  timeout: 240_000,
}, async () => {
  const advisory = (severity: string) => [
    {
      id: 1,
      url: "https://example.org/1",
      title: "A hole",
      severity,
      vulnerable_versions: "*",
      cwe: [],
      cvss: { score: 0 },
    },
  ];
  const audit = async (registry: string): Promise<[boolean, string]> => {
    const lines: string[] = [];
    const good = await auditDependencies(root, (line) => lines.push(line), [`--registry=${registry}`]);
    return [good, lines.join("\n")];
  };
  {
    await using registry = await startAdvisories({ express: advisory("high"), helmet: advisory("low") });
    const [good, text] = await audit(registry.url);
    expect(good).toBe(false);
    expect(text).toContain("express (high): A hole https://example.org/1");
    expect(text).not.toContain("helmet");
    expect(registry.asked).toContain("express");
    expect(registry.asked).not.toContain("vitest");
  }
  {
    await using registry = await startAdvisories({});
    expect(await audit(registry.url)).toEqual([true, expect.stringContaining("no high or critical weakness")]);
  }
  expect(await audit(`http://127.0.0.1:${await freePort()}/`)).toEqual([true, expect.stringContaining("does not say")]);
});
