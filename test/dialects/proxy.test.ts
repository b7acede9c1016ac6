import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { request } from "node:https";
import { join } from "node:path";
import { expect, it } from "vitest";
import { unpackHaproxy } from "../../scripts/haproxy-package.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { makeCertificate } from "../kit/certificate.ts";
import type { Instance } from "../kit/instance.ts";
import { rawRequest } from "../kit/raw-request.ts";
import { waitFor } from "../kit/wait-for.ts";
import { startApiOnly } from "./api-only.ts";

const project = "00000000000000000000000000000001";

interface Proxy extends AsyncDisposable {
  port: number;
  ca: string;
  program: Program;
}

/** A real HAProxy that ends TLS before the API, and puts it below `/volume`. */
async function startProxy(instance: Instance): Promise<Proxy> {
  const dir = join(instance.dataDir, "proxy");
  mkdirSync(dir, { recursive: true });
  const { ca, cert, key } = await makeCertificate(dir);
  writeFileSync(join(dir, "both.pem"), readFileSync(cert, "utf8") + readFileSync(key, "utf8"));
  const port = await freePort();
  const config = `
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend api
  bind 127.0.0.1:${port} ssl crt ${join(dir, "both.pem")}
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Port ${port}
  http-request set-header X-Forwarded-Prefix /volume if { path_beg /volume/ }
  http-request replace-path /volume(/.*) \\1
  option forwardfor
  default_backend tephra
backend tephra
  server one 127.0.0.1:${new URL(instance.url).port}
`;
  writeFileSync(join(dir, "haproxy.cfg"), config);
  const { command, env } = await unpackHaproxy((line) => process.stdout.write(`${line}\n`));
  const program = await spawnProgram({ name: "haproxy", command, args: ["-db", "-f", join(dir, "haproxy.cfg")], env });
  return { port, ca, program, [Symbol.asyncDispose]: async () => void (await program.stop()) };
}

/** GET by TLS. @throws when the certificate is not of `ca` */
function ask(url: string, ca: string): Promise<{ status: number; location: string | undefined; text: string }> {
  return new Promise((done, failed) => {
    const headers = { "x-auth-token": `admin:${project}` };
    const asked = request(url, { ca: readFileSync(ca), headers, agent: false, timeout: 20_000 }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
      });
      answer.on("end", () => done({ status: answer.statusCode ?? 0, location: answer.headers.location, text }));
    });
    asked.on("error", failed);
    asked.end();
  });
}

it("leads by its links back through the proxy that it is asked by, TLS and prefix included", {
  timeout: 180_000,
}, async () => {
  await using instance = await startApiOnly({ config: { trust_proxy: ["127.0.0.0/8"] } });
  for (const name of ["one", "two", "three"]) {
    const made = await instance.request("POST", `/v3/${project}/volumes`, { volume: { size: 1, name } });
    expect(made.status, made.text).toBe(202);
  }
  await using proxy = await startProxy(instance);
  const base = `https://localhost:${proxy.port}`;
  const isUp = async (): Promise<boolean> => (await ask(`${base}/`, proxy.ca).catch(() => null))?.status === 300;
  await waitFor(isUp, { what: "HAProxy is up", timeoutMs: 30_000, context: proxy.program.tail });

  for (const prefix of ["", "/volume"]) {
    const root = `${base}${prefix}`;
    const versions = JSON.parse((await ask(`${root}/`, proxy.ca)).text).versions;
    expect(versions[0].links.find((link: { rel: string }) => link.rel === "self").href).toBe(`${root}/v3/`);
    if (prefix === "") expect((await ask(`${root}/v3`, proxy.ca)).location).toBe(`${root}/v3/`);
    const seen: string[] = [];
    let next: string | undefined = `${root}/v3/${project}/volumes?limit=1`;
    while (next !== undefined && seen.length < 5) {
      expect(next.startsWith(`${root}/v3/`), next).toBe(true);
      const { status, text } = await ask(next, proxy.ca);
      expect(status, text).toBe(200);
      const page = JSON.parse(text);
      for (const volume of page.volumes) {
        seen.push(volume.name);
        const self = volume.links.find((link: { rel: string }) => link.rel === "self").href;
        expect((await ask(self, proxy.ca)).status, self).toBe(200);
      }
      next = page.volumes_links?.[0].href;
    }
    expect(seen).toEqual(["three", "two", "one"]);
  }
});

it("believes nobody else what a proxy would say", async () => {
  await using instance = await startApiOnly({ config: { trust_proxy: ["192.0.2.1", "2001:db8::/32"] } });
  const port = Number(new URL(instance.url).port);
  const headers = {
    host: `localhost:${port}`,
    "x-forwarded-proto": "https",
    "x-forwarded-host": "evil.example",
    "x-forwarded-port": "1",
    "x-forwarded-prefix": "/evil",
  };
  const plain = await rawRequest(port, { method: "GET", path: "/", headers });
  expect(JSON.parse(plain.text).versions[0].links[1].href).toBe(`http://localhost:${port}/v3/`);
});

it("makes no link of a header that is none", async () => {
  await using instance = await startApiOnly({ config: { trust_proxy: ["127.0.0.1"] } });
  const port = Number(new URL(instance.url).port);
  const asked = async (headers: Record<string, string>): Promise<string> => {
    const reply = await rawRequest(port, { method: "GET", path: "/", headers: { host: "localhost:80", ...headers } });
    return JSON.parse(reply.text).versions[0].links[1].href;
  };
  expect(await asked({ "x-forwarded-host": 'localhost"><script>' })).toBe("http://localhost:80/v3/");
  expect(await asked({ "x-forwarded-prefix": "//evil.example" })).toBe("http://localhost:80/v3/");
  expect(await asked({ "x-forwarded-proto": "javascript" })).toBe("http://localhost:80/v3/");
  expect(await asked({ "x-forwarded-host": "inner:1, localhost" })).toBe("http://localhost/v3/");
  expect(await asked({ "x-forwarded-host": "[::1]:8443", "x-forwarded-proto": "https" })).toBe(
    "https://[::1]:8443/v3/",
  );
});
