import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { onTestFinished } from "vitest";

const execute = promisify(execFile);

/**
 * A block device over a file, detached when the test has ended. Null where the machine lets nobody make one, as most containers do: then
 * there is no block device to try, and the test that needs one is reported as skipped, with that as the reason.
 */
export async function attachLoopDevice(file: string): Promise<string | null> {
  const made = await execute("losetup", ["--find", "--show", file]).catch(() => null);
  if (made === null) return null;
  const device = made.stdout.trim();
  onTestFinished(async () => void (await execute("losetup", ["--detach", device])));
  return device;
}
