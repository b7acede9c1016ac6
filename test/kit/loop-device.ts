import { execFile } from "node:child_process";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { onTestFinished } from "vitest";

const execute = promisify(execFile);

/**
 * A block device over a file, detached when the test has ended. Null where the machine lets nobody make one, as most containers do: then
 * there is no block device to try, and the test that needs one is reported as skipped, with that as the reason.
 */
export async function attachLoopDevice(file: string): Promise<string | null> {
  const device = await attach(file);
  if (device !== null) onTestFinished(() => detach(device));
  return device;
}

async function attach(file: string): Promise<string | null> {
  const made = await execute("losetup", ["--find", "--show", file]).catch(() => null);
  return made === null ? null : made.stdout.trim();
}

async function detach(device: string): Promise<void> {
  await execute("losetup", ["--detach", device]);
}

/** Why this machine has no loop devices; null where it has. */
export async function noLoopDevices(): Promise<string | null> {
  const folder = await mkdtemp(join(tmpdir(), "tephra-loop-"));
  try {
    const file = join(folder, "file");
    await writeFile(file, "");
    await truncate(file, 4096);
    const device = await attach(file);
    if (device !== null) await detach(device);
    return device === null ? "no loop devices here" : null;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
