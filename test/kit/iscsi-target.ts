import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { provideTgt } from "../../scripts/tgt-package.ts";
import { waitFor } from "./wait-for.ts";

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
  const port = await freePort();
  const [iqn, user, password] = ["iqn.2026-11.test.tephra:disks", "reader", "canary-secret-1"];
  const env = {
    ...process.env,
    ...(await provideTgt((line) => process.stderr.write(`${line}\n`))),
    TGT_IPC_SOCKET: join(home, "tgt"),
  };
  const admin = (...args: string[]) => promisify(execFile)("tgtadm", ["--lld", "iscsi", ...args], { env });
  const start = async (): Promise<Program> => {
    const args = ["-f", "--iscsi", `portal=127.0.0.1:${port}`];
    const program = await spawnProgram({ name: "tgtd", command: "tgtd", args, env, cwd: home });
    await waitFor(async () => (await admin("--op", "show", "--mode", "target")).stderr === "", {
      what: "tgtd answers",
    });
    await admin("--op", "new", "--mode", "target", "--tid", "1", "-T", iqn);
    for (const [index, file] of files.entries()) {
      await admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", String(index + 1), "-b", file);
    }
    await admin("--op", "new", "--mode", "account", "--user", user, "--password", password);
    await admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", user);
    await admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL");
    return program;
  };
  let program = await start();
  const kill = async (): Promise<void> => {
    program.kill("SIGKILL");
    await program.exited;
  };
  return {
    port,
    iqn,
    user,
    password,
    kill,
    restart: async () => {
      program = await start();
    },
    [Symbol.asyncDispose]: kill,
  };
}
