import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { systemPython } from "../../scripts/debian-packages.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { unpackSwift } from "../../scripts/swift-package.ts";
import { waitFor } from "./wait-for.ts";

export interface SwiftOptions {
  /** Whether the S3 API honours If-None-Match on a put, like S3, or answers 501, like many stores. Default: honours it. */
  conditionalPut?: boolean;
  /** Whether containers can keep versions of objects. Default: they cannot. */
  versions?: boolean;
  /** A Keystone whose tokens are accepted in addition to those of auth version 1. */
  identity?: { url: string; user: string; password: string; project: string };
  /** Names and passwords of further users of the same account. */
  otherUsers?: Record<string, string>;
  /** The password of its user, which is also the secret key of S3. */
  key?: string;
  /** The proxy's port; default: a free one. */
  port?: number;
}

/** A real Swift, which also offers the S3 API, in its own folder. */
export interface SwiftServer extends AsyncDisposable {
  readonly port: number;
  readonly url: string;
  readonly user: string;
  readonly key: string;
  readonly program: Program;
  /** Settles when no token of auth version 1 is good any more, as when its time is over. */
  endTokens(): Promise<void>;
}

const user = "test:tester";
const keyDefault = "testing";
const attemptsMax = 5;

/** Starts it; `await using` stops and removes it. */
export async function startSwift(options: SwiftOptions = {}): Promise<SwiftServer> {
  const key = options.key ?? keyDefault;
  const environment = await unpackSwift((line) => process.stderr.write(`${line}\n`));
  const dir = mkdtempSync(join(tmpdir(), "tephra-swift-"));
  for (let attempt = 1; ; attempt += 1) {
    const proxyPort = options.port ?? freePort();
    const ports = await Promise.all([proxyPort, freePort(), freePort(), freePort()]);
    const settings = {
      dir,
      ports,
      users: { [user]: key, ...options.otherUsers },
      conditional_put: options.conditionalPut ?? true,
      versions: options.versions ?? false,
      identity: options.identity ?? null,
    };
    const program = await spawnProgram({
      name: "swift",
      command: systemPython,
      args: ["-W", "ignore", join(root, "test/kit/swift-server.py"), JSON.stringify(settings)],
      env: { PATH: process.env["PATH"], HOME: dir, ...environment },
      cwd: dir,
      orphanSignal: "TERM",
    });
    await waitFor(() => !program.running() || /^ready$/m.test(program.tail()), {
      what: "Swift is ready",
      timeoutMs: 90_000,
      context: () => program.tail(),
    });
    const [port] = ports;
    if (program.running() && port !== undefined) {
      return {
        port,
        url: `http://127.0.0.1:${port}`,
        user,
        key,
        program,
        endTokens: async () => {
          const { status } = await fetch(`http://127.0.0.1:${port}/tests/forget`);
          if (status !== 204) throw new Error(`Swift's proxy forgets nothing: ${status}`);
        },
        [Symbol.asyncDispose]: async () => {
          await program.stop();
          rmSync(dir, { recursive: true, force: true });
        },
      };
    }
    // Another process may have taken one of the ports meanwhile.
    if (attempt === attemptsMax) {
      const logs = ["proxy", "account", "container", "object"].map((kind) => logOf(dir, kind)).join("\n");
      rmSync(dir, { recursive: true, force: true });
      throw new Error(`Swift did not start:\n${program.tail()}\n${logs}`);
    }
  }
}

function logOf(dir: string, kind: string): string {
  try {
    return `--- ${kind}\n${readFileSync(join(dir, `${kind}.log`), "utf8").slice(-2000)}`;
  } catch {
    return "";
  }
}
