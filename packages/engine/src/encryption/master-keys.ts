import { execFile } from "node:child_process";
import { open } from "node:fs/promises";
import { promisify } from "node:util";
import { keyVersionPattern } from "@tephra/format";
import { errnoOf, RepositoryConfigError, RepositoryUnavailableError } from "../errors.ts";

/** Where the master keys of a repository come from: a file, or a program's output. Exactly one of the two. */
export interface MasterKeySource {
  /** Must not be world-readable. */
  keyFile?: string | undefined;
  /** A program and its arguments; run without a shell. */
  keyCommand?: readonly string[] | undefined;
}

export interface MasterKey {
  /** Its name within object names. */
  version: string;
  /** 32 bytes. */
  secret: Buffer;
}

/** All available master keys, in the order in which they are tried. The first one is current: it wraps new data keys. */
export type MasterKeys = readonly [MasterKey, ...MasterKey[]];

const secretBytes = 32;
const textBytesMax = 64 * 1024;
const commandTimeoutMs = 30_000;
const runFile = promisify(execFile);

/**
 * Reads the master keys. RepositoryConfigError for a file that is unreadable or world-readable, and for text that is not a list of keys;
 * RepositoryUnavailableError when the command fails or takes longer than 30 s. No message quotes the text.
 */
export async function readMasterKeys(source: MasterKeySource): Promise<MasterKeys> {
  const { keyFile, keyCommand } = source;
  if (keyFile !== undefined && keyCommand === undefined) {
    return parseMasterKeys(await readKeyFile(keyFile), `The key file ${keyFile}`);
  }
  const [program, ...args] = keyCommand ?? [];
  if (program === undefined || keyFile !== undefined) {
    throw new RepositoryConfigError("Master keys come from either a key file or a key command.");
  }
  return parseMasterKeys(await runKeyCommand(program, args), `The output of the key command ${program}`);
}

/**
 * Parses a list of master keys: lines `version:secret` with 32 bytes in base64, the newest one last. Empty lines and lines that start
 * with `#` are ignored.
 */
export function parseMasterKeys(text: string, origin: string): MasterKeys {
  const keys: MasterKey[] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    const trimmed = line.trim();
    if (trimmed === "" || trimmed.startsWith("#")) continue;
    const colon = trimmed.indexOf(":");
    const version = trimmed.slice(0, Math.max(0, colon));
    const base64 = trimmed.slice(colon + 1);
    const secret = Buffer.from(base64, "base64");
    const right =
      keyVersionPattern.test(version) && secret.length === secretBytes && secret.toString("base64") === base64;
    if (!right) throw new RepositoryConfigError(`${origin}: line ${index + 1} is not version:key, 32 bytes in base64.`);
    if (keys.some((key) => key.version === version)) {
      throw new RepositoryConfigError(`${origin}: version ${version} is there twice.`);
    }
    keys.unshift({ version, secret });
  }
  const [current, ...older] = keys;
  if (current === undefined) throw new RepositoryConfigError(`${origin} has no key.`);
  return [current, ...older];
}

async function readKeyFile(path: string): Promise<string> {
  try {
    await using file = await open(path, "r");
    const status = await file.stat();
    if (!status.isFile()) throw new RepositoryConfigError(`The key file ${path} is not a regular file.`);
    if (process.platform !== "win32" && (status.mode & 0o007) !== 0) {
      throw new RepositoryConfigError(`The key file ${path} is open to every user of this machine: chmod 600 it.`);
    }
    if (status.size > textBytesMax) throw new RepositoryConfigError(`The key file ${path} is too long.`);
    return await file.readFile("utf8");
  } catch (cause) {
    if (cause instanceof RepositoryConfigError) throw cause;
    throw new RepositoryConfigError(`The key file ${path} cannot be read (${errnoOf(cause)}).`, { cause });
  }
}

async function runKeyCommand(program: string, args: readonly string[]): Promise<string> {
  try {
    const options = { timeout: commandTimeoutMs, killSignal: "SIGKILL", maxBuffer: textBytesMax } as const;
    return (await runFile(program, args, options)).stdout;
  } catch (error) {
    // No cause: it would contain the command's output.
    const { code, killed } = error as { code?: unknown; killed?: unknown };
    const reason = killed === true ? `it took longer than ${commandTimeoutMs / 1000} s` : String(code);
    throw new RepositoryUnavailableError(`The key command ${program} failed: ${reason}.`, { retryable: true });
  }
}
