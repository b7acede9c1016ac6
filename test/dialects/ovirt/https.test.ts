import { execFile } from "node:child_process";
import { createPublicKey, X509Certificate } from "node:crypto";
import { chmodSync, copyFileSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { request } from "node:https";
import { join } from "node:path";
import { connect } from "node:tls";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { freePort } from "../../../scripts/spawn-program.ts";
import { makeCertificate } from "../../kit/certificate.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { basic, hashOf, ovirtUsers, password, projects } from "./engine.ts";

const execute = promisify(execFile);
const pki = "/ovirt-engine/services/pki-resource";

/** An API alone, with HTTPS on a port of its own. */
async function startSecure(tls: object = {}, more: object = {}): Promise<{ instance: Instance; port: number }> {
  const port = await freePort();
  const config = { ovirt: { users: ovirtUsers }, tls: { port, ...tls }, ...more };
  return { instance: await startInstance({ workers: 0, config }), port };
}

interface Reply {
  status: number;
  type: string;
  text: string;
  location: string | undefined;
}

/** `ca`: what is trusted; null: anything. */
function get(port: number, path: string, { ca = null, headers = {} }: { ca?: string | null; headers?: object } = {}) {
  const trust = ca === null ? { rejectUnauthorized: false } : { ca };
  return new Promise<Reply>((resolve, reject) => {
    const options = { host: "127.0.0.1", port, path, headers: { ...headers }, agent: false, ...trust };
    const outgoing = request(options, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("end", () => {
        const { statusCode: status = 0, headers: got } = response;
        resolve({ status, type: got["content-type"] ?? "", text, location: got.location });
      });
    });
    outgoing.on("error", reject).end();
  });
}

/** The certificate that a server shows. */
function shownBy(port: number): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false }, () => {
      const found = socket.getPeerX509Certificate();
      socket.destroy();
      if (found) resolve(found);
      else reject(new Error("no certificate"));
    });
    socket.on("error", reject);
  });
}

it("curl and clients trust what pki-resource shows, and links begin with https", { timeout: 240_000 }, async () => {
  const { instance, port } = await startSecure({ names: ["backup.example"] });
  await using _ = instance;
  const origin = `https://127.0.0.1:${port}`;
  const shown = await get(port, `${pki}?resource=ca-certificate&format=X509-PEM-CA`);
  expect([shown.status, shown.type]).toEqual([200, "application/x-x509-ca-cert"]);
  const file = join(instance.dataDir, "trusted.pem");
  const query = `${origin}${pki}?resource=ca-certificate&format=X509-PEM-CA`;
  await execute("curl", ["-ks", "-o", file, query]);
  const credentials = ["-u", `admin@internal:${password}`];
  const trusted = await execute("curl", ["-s", "--cacert", file, ...credentials, `${origin}/ovirt-engine/api`]);
  expect(trusted.stdout).toContain("<name>oVirt Engine</name>");
  await expect(execute("curl", ["-s", ...credentials, `${origin}/ovirt-engine/api`])).rejects.toMatchObject({
    code: 60,
  });
  const ca = readFileSync(file, "utf8");
  const root = await get(port, "/", { ca });
  expect(root.text).toContain(`"${origin}/v3/"`);
  // HTTP answers as before.
  expect((await instance.request("GET", "/healthcheck")).status).toBe(200);
  const own = await shownBy(port);
  expect(own.subjectAltName?.split(", ")).toEqual(
    expect.arrayContaining(["DNS:localhost", "DNS:backup.example", "IP Address:127.0.0.1"]),
  );
  expect(own.verify(new X509Certificate(ca).publicKey) && !own.ca).toBe(true);
});

it("pki-resource has the formats of oVirt, and refuses others", { timeout: 240_000 }, async () => {
  const { instance, port } = await startSecure();
  await using _ = instance;
  const ask = (query: string) => get(port, `${pki}?${query}`);
  const ca = await ask("resource=ca-certificate");
  const engine = await ask("resource=engine-certificate&format=X509-PEM");
  expect([ca.type, engine.type]).toEqual(["application/x-x509-ca-cert", "application/x-x509-cert"]);
  expect(new X509Certificate(engine.text).checkIssued(new X509Certificate(ca.text))).toBe(true);
  const ssh = await ask("resource=engine-certificate&format=OPENSSH-PUBKEY");
  expect([ssh.type, ssh.text.trim().split(" ")[2]]).toEqual(["text/plain", "ovirt-engine"]);
  const named = await ask("resource=ca-certificate&format=OPENSSH-PUBKEY&alias=ours");
  expect(named.text).toMatch(/^ecdsa-sha2-nistp256 [A-Za-z0-9+/=]+ ours\n$/);
  // What OpenSSH makes of it is the certificate's key again.
  const path = join(instance.dataDir, "key.pub");
  const { stdout } = await execute("bash", [
    "-c",
    `printf '%s' "$1" > "$2"; ssh-keygen -e -m PKCS8 -f "$2"`,
    "-",
    named.text,
    path,
  ]);
  const point = (key: Parameters<typeof createPublicKey>[0]) => createPublicKey(key).export({ format: "jwk" });
  expect(point(stdout)).toEqual(new X509Certificate(ca.text).publicKey.export({ format: "jwk" }));
  for (const query of [
    "",
    "resource=secrets",
    "resource=ca-certificate&format=PKCS12",
    "resource=ca-certificate&format=__proto__",
  ]) {
    const { status, text } = await ask(query);
    expect([status, text.includes("<fault>")], query).toEqual([400, true]);
  }
  // Without HTTPS there is nothing to trust.
  await using plain = await startInstance({ workers: 0, config: { ovirt: { users: ovirtUsers } } });
  expect((await plain.request("GET", `${pki}?resource=ca-certificate`)).status).toBe(404);
});

it("the authority is kept, its key readable by the owner alone, and shared by processes that start at once", {
  timeout: 240_000,
}, async () => {
  const { instance, port } = await startSecure();
  await using _ = instance;
  const dir = join(instance.dataDir, "tls");
  const modeOf = (path: string): number => statSync(path).mode & 0o777;
  expect([modeOf(dir), modeOf(join(dir, "ca.key"))]).toEqual([0o700, 0o600]);
  const first = await get(port, `${pki}?resource=ca-certificate`);
  const [before] = [await shownBy(port), await instance.killApi("SIGTERM")];
  await instance.startApi();
  const after = await shownBy(port);
  expect(after.serialNumber).not.toBe(before.serialNumber);
  expect(after.verify(new X509Certificate(first.text).publicKey)).toBe(true);
  await instance.killApi("SIGTERM");
  chmodSync(join(dir, "ca.key"), 0o640);
  await expect(instance.startApi()).rejects.toThrow("may be read by others than its owner");
  rmSync(dir, { recursive: true });
  const { openAuthority } = await import("../../../packages/control/src/tls/authority.ts");
  const found = await Promise.all(Array.from({ length: 8 }, () => openAuthority(dir)));
  expect(new Set(found.map(({ cert }) => cert)).size).toBe(1);
  expect(readdirSync(dir).sort()).toEqual(["ca.key", "ca.pem"]);
});

it("a certificate is replaced before its end, while the process runs", { timeout: 240_000 }, async () => {
  // Of 17 seconds, looked at every 0.9.
  const { instance, port } = await startSecure({ certificate_days: 0.0002 });
  await using _ = instance;
  const { text: ca } = await get(port, `${pki}?resource=ca-certificate`);
  const first = await shownBy(port);
  const second = await waitFor(
    async () => {
      const shown = await shownBy(port);
      return shown.serialNumber !== first.serialNumber && shown;
    },
    { what: "another certificate", timeoutMs: 60_000 },
  );
  expect(second.validToDate.getTime()).toBeGreaterThan(first.validToDate.getTime());
  expect((await get(port, "/healthcheck", { ca })).status).toBe(200);
});

it("the operator's certificate is used, and read again when it has changed", { timeout: 240_000 }, async () => {
  const dir = (name: string): string => join(process.env["TMPDIR"] ?? "/tmp", `tephra-https-${process.pid}-${name}`);
  const [one, other] = [await makeCertificate(dir("one")), await makeCertificate(dir("other"))];
  try {
    const files = { certificate_file: one.cert, private_key_file: one.key, ca_file: one.ca };
    // Looked at as often as a certificate of so short a life is.
    const { instance, port } = await startSecure({ ...files, certificate_days: 0.0002 });
    await using _ = instance;
    const user = { authorization: basic("admin@internal") };
    const trusted = await get(port, "/ovirt-engine/api", { ca: readFileSync(one.ca, "utf8"), headers: user });
    expect(trusted.status).toBe(200);
    const shown = await get(port, `${pki}?resource=ca-certificate`);
    expect(new X509Certificate(shown.text).fingerprint256).toBe(
      new X509Certificate(readFileSync(one.ca)).fingerprint256,
    );
    const before = await shownBy(port);
    copyFileSync(other.ca, one.ca);
    copyFileSync(other.cert, one.cert);
    copyFileSync(other.key, one.key);
    await waitFor(async () => (await shownBy(port)).fingerprint256 !== before.fingerprint256, {
      what: "the new certificate",
    });
    expect((await get(port, "/healthcheck", { ca: readFileSync(other.ca, "utf8") })).status).toBe(200);
  } finally {
    for (const name of ["one", "other"]) rmSync(dir(name), { recursive: true, force: true });
  }
});

it("servers of images have a certificate of the same authority", { timeout: 240_000 }, async () => {
  const user = { name: "admin@internal", password_hash: hashOf(password), project_id: projects.a, roles: ["member"] };
  const images = { image_transfers: { port: await freePort() }, ovirt: { users: [user] } };
  const { instance, port } = await startSecure({}, images);
  await using _ = instance;
  await instance.startTransfer();
  const [server] = await instance.sql("SELECT url FROM image_servers");
  expect(server.url).toMatch(/^https:\/\/127\.0\.0\.1:/);
  const { text: ca } = await get(port, `${pki}?resource=ca-certificate`);
  const reply = await get(Number(new URL(server.url).port), "/images/unknown", { ca });
  expect(reply.status).toBe(403);
});
