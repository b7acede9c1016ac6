import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { systemPython } from "../../scripts/debian-packages.ts";
import { freePort, spawnProgram } from "../../scripts/spawn-program.ts";
import { unpackSwift } from "../../scripts/swift-package.ts";
import { type SwiftServer, startSwift } from "./swift.ts";
import { waitFor } from "./wait-for.ts";

/** A real Keystone with a real Swift behind it. */
export interface KeystoneServer extends AsyncDisposable {
  readonly url: string;
  readonly user: string;
  readonly password: string;
  readonly project: string;
  readonly region: string;
  readonly swift: SwiftServer;
}

/** Starts both; `await using` stops and removes them. */
export async function startKeystone(options: { tokenLifeSeconds: number }): Promise<KeystoneServer> {
  const environment = await unpackSwift((line) => process.stderr.write(`${line}\n`));
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-keystone-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const [port, swiftPort] = await Promise.all([freePort(), freePort()]);
  const access = { user: "admin", password: "pass word+1", project: "admin", region: "north" };
  const settings = {
    dir,
    port,
    password: access.password,
    region: access.region,
    token_life: options.tokenLifeSeconds,
    object_store: `http://127.0.0.1:${swiftPort}/v1/AUTH_%(project_id)s`,
  };
  const program = await spawnProgram({
    name: "keystone",
    command: systemPython,
    args: ["-W", "ignore", join(root, "test/harness/keystone-server.py"), JSON.stringify(settings)],
    env: { PATH: process.env["PATH"], HOME: dir, ...environment },
    cwd: dir,
  });
  stack.defer(async () => void (await program.stop()));
  await waitFor(() => !program.running() || /^ready$/m.test(program.tail()), {
    what: "Keystone is ready",
    timeoutMs: 90_000,
    context: () => program.tail(),
  });
  if (!program.running()) throw new Error(`Keystone did not start:\n${program.tail()}`);
  const url = `http://127.0.0.1:${port}`;
  const swift = await startSwift({ port: swiftPort, identity: { url, ...access } });
  stack.use(swift);
  const owned = stack.move();
  return { ...access, url, swift, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
