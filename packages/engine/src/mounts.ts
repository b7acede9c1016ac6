import { readFile, realpath } from "node:fs/promises";
import { ignoreMissing } from "./repository/posix-files.ts";

export interface Mount {
  path: string;
  type: string;
  source: string;
}

/** What is mounted on a folder, as this process sees it; undefined: nothing is, or there is no such folder. */
export async function mountAt(folder: string): Promise<Mount | undefined> {
  const real = await realpath(folder).catch(ignoreMissing);
  if (real === undefined) return undefined;
  return parseMountInfo(await readFile("/proc/self/mountinfo", "utf8")).findLast(({ path }) => path === real);
}

/** Whether a mount may be that share of NFS: of one that is mounted by other means, such as a bind mount, the source is not known. */
export const isShare = ({ type, source }: Mount, share: string): boolean =>
  !type.startsWith("nfs") || withoutSlash(source) === withoutSlash(share);

/** The lines of /proc/self/mountinfo, see proc_pid_mountinfo(5); the last mount on a path is the visible one. */
export function parseMountInfo(text: string): Mount[] {
  return text.split("\n").flatMap((line) => {
    const [before, after] = line.split(" - ");
    const path = before?.split(" ")[4];
    const [type, source] = after?.split(" ") ?? [];
    if (path === undefined || type === undefined || source === undefined) return [];
    return [{ path: unescaped(path), type, source: unescaped(source) }];
  });
}

/** Spaces, tabs, newlines and backslashes are written as three octal digits. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

function withoutSlash(share: string): string {
  return share.replace(/\/+$/, "");
}
