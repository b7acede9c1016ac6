import { existsSync, readFileSync } from "node:fs";
import { join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import type { Config } from "./config.ts";

/** Folders that the embedded set-up creates in the data folder, apart from the exchange folder. */
const dataFolders = ["log", "postgres", "redis", "repository", "run", "scratch", "tls", "volumes", "writers"];
/** Where the program itself is installed, relative to this file. */
const installation = fileURLToPath(new URL("../../..", import.meta.url));
const programFolders = ["apps", "node_modules", "packages", "prisma", "scripts"];
/** Keys whose folders are open to users, or contain nothing of ours. */
const givenKeys = ["data_dir", "import_roots", "qmp_socket_roots"];
/** Keys whose value is a path, even a relative one. */
const pathKey = /^(?:path|credentials|ca|ca_dir|.*_file)$/;

/**
 * Every folder and file that the service itself uses, as far as this machine and its configuration show: no import reads them and no export
 * writes them, whatever root they lie beneath. From the configuration this includes everything that is a path, also within a URL.
 */
export function ownPlaces(config: Config): string[] {
  const { settings: _, ...configured } = config;
  const places = [
    ...dataFolders.map((name) => join(config.data_dir, name)),
    ...programFolders.map((name) => join(installation, name)),
    ...pathsIn(configured),
  ];
  if (config.configFile !== null) places.push(config.configFile);
  // Where PostgreSQL's user cannot reach the data folder, its cluster is elsewhere (scripts/postgres.ts).
  const record = join(config.data_dir, "postgres/cluster-is-in");
  if (existsSync(record)) places.push(readFileSync(record, "utf8").trim());
  return [...new Set(places)].filter((place) => place !== sep);
}

/** Whether a path without `..` is one of these places or lies in one, by comparing text only. */
export function isOwnPlace(path: string, places: readonly string[]): boolean {
  return places.some((place) => path === place || path.startsWith(place + sep));
}

function pathsIn(value: unknown, key = ""): string[] {
  if (givenKeys.includes(key)) return [];
  if (typeof value === "string") return pathsOf(value, key);
  if (Array.isArray(value)) return value.flatMap((item) => pathsIn(item, key));
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([name, item]) => pathsIn(item, name));
}

function pathsOf(text: string, key: string): string[] {
  if (key === "url" || key.endsWith("_url")) return pathsOfUrl(text);
  return text.startsWith("/") || pathKey.test(key) ? [resolve(text)] : [];
}

/** The folder of a `posix:` URL, the mounts of an `nfs:` one, and what parameters name. */
function pathsOfUrl(url: string): string[] {
  // In such a URL everything after the scheme is the path.
  if (url.startsWith("posix:")) return [resolve(url.slice("posix:".length))];
  const [address = "", query = ""] = url.split("?", 2);
  const parameters = new URLSearchParams(query);
  const named = [...parameters.values()].filter((value) => value.startsWith("/")).map((value) => resolve(value));
  if (address.startsWith("nfs:") && !parameters.has("mount_base")) return ["/var/lib/tephra/mnt", ...named];
  return named;
}
