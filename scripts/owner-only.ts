import { chmodSync, lstatSync, readdirSync } from "node:fs";
import { join } from "node:path";

/** Removes all permissions of group and others from a file, or recursively from a folder. Links are left unchanged. */
export function keepToOwner(path: string): void {
  const status = lstatSync(path);
  if (!status.isFile() && !status.isDirectory() && !status.isSocket()) return;
  if ((status.mode & 0o077) !== 0) chmodSync(path, status.mode & 0o700);
  if (status.isDirectory()) for (const name of readdirSync(path)) keepToOwner(join(path, name));
}

/** Lets others only traverse a folder, to what they own in it. */
export function keepToPassersBy(folder: string): void {
  const { mode } = lstatSync(folder);
  if ((mode & 0o777) !== 0o711) chmodSync(folder, 0o711);
}
