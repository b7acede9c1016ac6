import { chmodSync, lstatSync, readdirSync } from "node:fs";
import { join } from "node:path";

/** Takes every right to a file, or to a folder and all that is in it, from everybody but its owner. Links are left alone. */
export function keepToOwner(path: string): void {
  const status = lstatSync(path);
  if (!status.isFile() && !status.isDirectory() && !status.isSocket()) return;
  if ((status.mode & 0o077) !== 0) chmodSync(path, status.mode & 0o700);
  if (status.isDirectory()) for (const name of readdirSync(path)) keepToOwner(join(path, name));
}

/** Leaves others the right to go through a folder to what they own in it, and no other. */
export function keepToPassersBy(folder: string): void {
  const { mode } = lstatSync(folder);
  if ((mode & 0o777) !== 0o711) chmodSync(folder, 0o711);
}
