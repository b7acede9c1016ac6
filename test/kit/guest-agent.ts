import { execFileSync } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { appears, startQemu } from "./qemu.ts";

/** A file system of its own under a real guest agent, which alone sees it. */
export interface GuestFilesystem extends AsyncDisposable {
  readonly agentSocket: string;
  /** What the agent calls it. */
  readonly mountpoint: string;
  /** Where this process reaches it. */
  readonly folder: string;
}

/** Why no file system of one's own can be mounted here; null where it can. */
export function whyNoGuest(): string | null {
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
 * Starts a real qemu-ga in a mount namespace of its own, with a file system on a loop device that exists only there. Needs root.
 * The agent may freeze nothing but what it is told by name: a plain freeze would freeze this machine, so the command is
 * switched off, and with it whatever else would reach beyond the file system.
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
      // A frozen file system would outlive its mount, and its loop device with it.
      try {
        execFileSync("fsfreeze", ["--unfreeze", folder], { stdio: "ignore" });
      } catch {}
      await program.stop();
    },
  };
}
