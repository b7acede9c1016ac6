import { execFileSync } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "vitest";
import { appears, startQemu } from "./qemu.ts";

/** A private file system with a real guest agent, which sees no other. */
export interface GuestFilesystem extends AsyncDisposable {
  readonly agentSocket: string;
  /** Its path as seen by the agent. */
  readonly mountpoint: string;
  /** Its path as seen by this process. */
  readonly folder: string;
}

/** Skips a test, with the reason, where no private file system can be mounted. */
export function needsGuest(context: TestContext): void {
  const reason = whyNoGuest();
  context.skip(reason !== null, reason ?? "");
}

function whyNoGuest(): string | null {
  if (process.getuid?.() !== 0) return "mounting a file system of one's own needs root";
  if (!existsSync("/dev/loop-control")) return "there are no loop devices here";
  try {
    execFileSync("unshare", ["--mount", "--propagation", "private", "true"], { stdio: "ignore" });
    return null;
  } catch {
    return "this root may not mount anything";
  }
}

/**
 * Starts a real qemu-ga in its own mount namespace, with a file system on a loop device that exists only there. Needs root. The agent may
 * freeze only the file systems named to it: a plain freeze would freeze this machine, so that command is disabled, like every other
 * command that would affect anything else.
 */
export async function startGuestAgent(dir: string): Promise<GuestFilesystem> {
  const image = join(dir, "guest.img");
  const mountpoint = join(dir, "guest");
  const agentSocket = join(dir, "agent.sock");
  mkdirSync(mountpoint);
  const file = openSync(image, "w");
  ftruncateSync(file, 16 * 1024 * 1024);
  closeSync(file);
  execFileSync("mkfs.ext4", ["-q", image]);
  const blocked = ["fsfreeze-freeze", "shutdown", "exec", "file-open", "set-user-password", "set-time", "fstrim"]
    .concat(["suspend-disk", "suspend-ram", "suspend-hybrid", "set-vcpus", "set-memory-blocks"])
    .map((name) => `guest-${name}`);
  const program = await startQemu(
    "qemu-ga",
    ["--method", "unix-listen", "--path", agentSocket, "--statedir", dir, "--block-rpcs", blocked.join(",")],
    { image, mountpoint },
  );
  const folder = `/proc/${program.pid}/root${mountpoint}`;
  await appears(agentSocket, program);
  return {
    agentSocket,
    mountpoint,
    folder,
    [Symbol.asyncDispose]: async () => {
      // A frozen file system would outlive its mount, and keep its loop device.
      try {
        execFileSync("fsfreeze", ["--unfreeze", folder], { stdio: "ignore" });
      } catch {}
      await program.stop();
    },
  };
}
