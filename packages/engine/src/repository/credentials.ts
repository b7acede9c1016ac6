import { readFile } from "node:fs/promises";
import { RepositoryConfigError } from "../errors.ts";

/** Accepted names for each value in a file, ours first. */
const spellings: Record<string, readonly string[]> = {
  access_key: ["access_key", "aws_access_key_id", "access_key_id"],
  secret_key: ["secret_key", "aws_secret_access_key", "secret_access_key"],
  session_token: ["session_token", "aws_session_token"],
  user: ["user", "username"],
  key: ["key", "password"],
};
const fileBytesMax = 64 * 1024;

/**
 * Reads credentials from a file: a JSON object, or `name = value` lines as in the AWS command line's file, using the section `[default]`
 * or the only one. RepositoryConfigError, whose message quotes nothing of the contents.
 */
export async function readCredentials(path: string): Promise<Map<string, string>> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    const reason = cause instanceof Error && "code" in cause ? String(cause.code) : "";
    throw new RepositoryConfigError(`The file of credentials ${path} cannot be read (${reason}).`, { cause });
  }
  if (text.length > fileBytesMax) throw new RepositoryConfigError(`The file of credentials ${path} is too long.`);
  const values = text.trimStart().startsWith("{") ? fromJson(text, path) : fromIni(text);
  const found = new Map<string, string>();
  for (const [name, names] of Object.entries(spellings)) {
    const value = names.map((each) => values.get(each)).find((each) => each !== undefined);
    if (value !== undefined) found.set(name, value);
  }
  return found;
}

function fromJson(text: string, path: string): Map<string, string> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    // No cause: its message would quote the file.
    throw new RepositoryConfigError(`The file of credentials ${path} is not JSON.`);
  }
  const entries = Object.entries(parsed as Record<string, unknown>);
  return new Map(entries.filter((entry): entry is [string, string] => typeof entry[1] === "string"));
}

function fromIni(text: string): Map<string, string> {
  const sections = new Map<string, Map<string, string>>();
  let current = new Map<string, string>();
  sections.set("", current);
  for (const line of text.split(/\r?\n/)) {
    const section = /^\s*\[([^\]]*)\]/.exec(line)?.[1];
    if (section !== undefined) {
      current = new Map();
      sections.set(section.trim(), current);
    }
    const [, name, value] = /^\s*([A-Za-z_]+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (name !== undefined && value !== undefined) current.set(name, value);
  }
  const filled = [...sections.values()].filter((each) => each.size > 0);
  return sections.get("default") ?? filled[0] ?? current;
}
