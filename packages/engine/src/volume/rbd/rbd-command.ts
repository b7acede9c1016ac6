import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { SourceMissingError, VolumeStorageError } from "../../errors.ts";
import type { RbdImage } from "./rbd-name.ts";

/** A client waits for ever for a cluster that does not answer. */
const limitMs = 30_000;
const answerBytesMax = 16 * 1024 * 1024;
const wordsMax = 500;

/**
 * Asks `rbd` of the package ceph-common. `args`: with the image as `--image=NAME`.
 *
 * @returns what it prints as JSON
 * @throws SourceMissingError when there is no such image or pool; VolumeStorageError
 */
export async function runRbd(args: readonly string[], access: RbdImage, shown: string): Promise<unknown> {
  const where = [
    ...["--format=json", `--pool=${access.pool}`],
    ...(access.namespace === null ? [] : [`--namespace=${access.namespace}`]),
    ...(access.conf === null ? [] : [`--conf=${access.conf}`]),
    ...(access.user === null ? [] : [`--id=${access.user}`]),
    ...(access.keyring === null ? [] : [`--keyring=${access.keyring}`]),
  ];
  const options = { timeout: limitMs, killSignal: "SIGKILL", maxBuffer: answerBytesMax } as const;
  try {
    return JSON.parse((await promisify(execFile)("rbd", [...args, ...where], options)).stdout);
  } catch (error) {
    throw failureOf(error as RbdFailure, shown);
  }
}

type RbdFailure = NodeJS.ErrnoException & { stderr?: string; killed?: boolean };

function failureOf(error: RbdFailure, shown: string): Error {
  const refuse = (why: string, retryable: boolean): VolumeStorageError =>
    new VolumeStorageError(`${shown} cannot be opened: ${why}.`, { cause: error, retryable });
  if (error.code === "ENOENT") return refuse("rbd is not installed (package ceph-common)", false);
  if (error.killed === true) return refuse(`Ceph did not answer for ${limitMs / 1000} s`, true);
  const words = wordsOf(error.stderr ?? "") || error.message;
  if (/\(2\) No such file or directory$/.test(words) && /^error opening (image|pool)/.test(words))
    return new SourceMissingError(`${shown} is not there: ${words}.`, { cause: error });
  return refuse(words, /\((110|111|113)\)/.test(words));
}

/** What rbd itself says, without the log lines of its libraries unless there is nothing else. */
function wordsOf(stderr: string): string {
  const lines = stderr
    .replaceAll(/[^\x20-\x7e\n]/g, "?")
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  const own = lines.filter((line) => line.startsWith("rbd: "));
  const why = lines.filter((line) => /keyring|handle_auth/.test(line)).map((line) => line.replace(/^\S+ \S+ +-1 /, ""));
  const said = own.length === 0 ? lines : own;
  const isVague = said.some((line) => line.includes("couldn't connect to the cluster"));
  return [...said.map((line) => line.replace(/^rbd: /, "")), ...(isVague ? why.slice(0, 1) : [])]
    .join("; ")
    .slice(0, wordsMax)
    .replace(/[.!]$/, "");
}
