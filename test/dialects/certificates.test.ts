import { execFile } from "node:child_process";
import { copyFileSync, readFileSync } from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { openHttpClient } from "@tephra/openstack";
import { expect, inject, it } from "vitest";
import { nodeFlags, projectNode } from "../../scripts/bootstrap.mjs";
import { makeCertificate } from "../kit/certificate.ts";

const execute = promisify(execFile);

/** A real server with a certificate of an authority of its own; answers 204. */
async function startServer(name: string) {
  const files = await makeCertificate(join(inject("servers").dir, name));
  const server = createServer({ cert: readFileSync(files.cert), key: readFileSync(files.key) }, (_req, res) => {
    res.writeHead(204).end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const url = `https://localhost:${(server.address() as AddressInfo).port}/`;
  const stop = async (): Promise<void> => {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  };
  return { ...files, url, [Symbol.asyncDispose]: stop };
}

const signal = (): AbortSignal => AbortSignal.timeout(20_000);

it("trusts the authority in a file, reads it again when it has changed, and no other", async () => {
  await using one = await startServer("one");
  await using other = await startServer("other");
  await expect(openHttpClient(null).ask(one.url, { signal: signal() })).rejects.toThrow();
  const ca = join(inject("servers").dir, "ca.pem");
  copyFileSync(one.ca, ca);
  const client = openHttpClient(ca);
  expect((await client.ask(one.url, { signal: signal() })).status).toBe(204);
  await expect(client.ask(other.url, { signal: signal() })).rejects.toThrow();
  copyFileSync(other.ca, ca);
  expect((await client.ask(other.url, { signal: signal() })).status).toBe(204);
  await expect(client.ask(one.url, { signal: signal() })).rejects.toThrow();
});

it("trusts, as a program of the launchers, what the machine trusts", async () => {
  await using server = await startServer("machine");
  const ask = `fetch(${JSON.stringify(server.url)}).then((answer) => console.log(answer.status), (error) => console.log(error.cause.code))`;
  const asked = async (env: Record<string, string>): Promise<string> =>
    (await execute(projectNode(), [...nodeFlags, "-e", ask], { env })).stdout.trim();
  expect(await asked({})).not.toBe("204");
  // The machine's store, as update-ca-certificates writes it.
  expect(await asked({ SSL_CERT_FILE: server.ca })).toBe("204");
});
