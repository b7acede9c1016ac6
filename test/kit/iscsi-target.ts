import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { provideTgt } from "../../scripts/tgt-package.ts";
import { waitFor } from "./wait-for.ts";

/** A tgtd without a target. */
export interface IscsiServer extends AsyncDisposable {
  readonly port: number;
  /** For programs that run tgtadm. */
  readonly environment: Record<string, string>;
  readonly program: Program;
  /** Runs tgtadm. */
  admin(...args: string[]): Promise<{ stdout: string; stderr: string }>;
}

/** `port`: null for a free one. */
export async function startIscsiServer(home: string, port: number | null = null): Promise<IscsiServer> {
  const listen = port ?? (await freePort());
  const environment = {
    ...(await provideTgt((line) => process.stderr.write(`${line}\n`))),
    TGT_IPC_SOCKET: join(home, "tgt"),
  };
  const env = { ...process.env, ...environment };
  const admin: IscsiServer["admin"] = (...args) => promisify(execFile)("tgtadm", ["--lld", "iscsi", ...args], { env });
  const args = ["-f", "--iscsi", `portal=127.0.0.1:${listen}`];
  const program = await spawnProgram({ name: "tgtd", command: "tgtd", args, env, cwd: home });
  await waitFor(async () => (await admin("--op", "show", "--mode", "target")).stderr === "", { what: "tgtd answers" });
  return {
    port: listen,
    environment,
    program,
    admin,
    [Symbol.asyncDispose]: async () => {
      program.kill("SIGKILL");
      await program.exited;
    },
  };
}

export interface IscsiTarget extends AsyncDisposable {
  readonly port: number;
  readonly iqn: string;
  readonly user: string;
  readonly password: string;
  /** Ends tgtd as a crash would. */
  kill(): Promise<void>;
  /** Starts it again, with the same LUNs. */
  restart(): Promise<void>;
}

/** A tgtd with one target, whose LUNs are these files, from 1 on; it lets in whoever knows the CHAP password. */
export async function startIscsiTarget(home: string, files: readonly string[]): Promise<IscsiTarget> {
  const [iqn, user, password] = ["iqn.2026-11.test.tephra:disks", "reader", "canary-secret-1"];
  const start = async (port: number | null): Promise<IscsiServer> => {
    const server = await startIscsiServer(home, port);
    const { admin } = server;
    await admin("--op", "new", "--mode", "target", "--tid", "1", "-T", iqn);
    for (const [index, file] of files.entries()) {
      await admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", String(index + 1), "-b", file);
    }
    await admin("--op", "new", "--mode", "account", "--user", user, "--password", password);
    await admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", user);
    await admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL");
    return server;
  };
  let server = await start(null);
  const kill = (): Promise<void> => Promise.resolve(server[Symbol.asyncDispose]());
  return {
    port: server.port,
    iqn,
    user,
    password,
    kill,
    restart: async () => {
      server = await start(server.port);
    },
    [Symbol.asyncDispose]: kill,
  };
}
