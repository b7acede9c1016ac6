import type { Request } from "express";
import { BareStatus, invalidValue } from "./faults.ts";

export type Version = 3 | 4;

/** Where a request leads: which tree it named, which version it asked for, the path behind that, and its parameters. */
export interface Address {
  version: Version;
  /** The beginning of the hrefs in answers: what the client itself used. Begins with the path by which a proxy is reached. */
  prefix: string;
  /** The decoded segments behind the prefix. */
  segments: readonly string[];
  parameters: Parameters;
}

/**
 * Query and matrix parameters, which are equivalent: `?async=true`, `;async=true`. Unknown ones are ignored. Of one that is there twice the
 * first counts, the query's before the path's.
 */
export class Parameters {
  readonly #values: ReadonlyMap<string, string>;
  constructor(pairs: Iterable<readonly [string, string]>) {
    const values = new Map<string, string>();
    for (const [name, value] of pairs) if (!values.has(name)) values.set(name, value);
    this.#values = values;
  }

  text(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** A flag; present without a value it is true. @throws OvirtFault 400 for anything but `true` and `false` */
  flag(name: string): boolean | undefined {
    const value = this.#values.get(name)?.trim().toLowerCase();
    if (value === undefined) return undefined;
    if (value !== "" && value !== "true" && value !== "false") {
      throw invalidValue(`${name}: '${value.slice(0, 64)}' is not a boolean`);
    }
    return value !== "false";
  }

  /** The largest number of items of a list. Negative: all of them, as in the engine. @throws OvirtFault 400 */
  max(): number | undefined {
    const value = this.#values.get("max")?.trim();
    if (value === undefined || value === "") return undefined;
    if (!/^-?\d{1,10}$/.test(value)) throw invalidValue(`max: '${value.slice(0, 64)}' is not a number`);
    return Number(value) < 0 ? undefined : Number(value);
  }
}

const roots = [
  { path: ["ovirt-engine", "api"], version: 4 },
  { path: ["api"], version: 3 },
] as const;

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new BareStatus(404);
  }
}

/** A segment and its matrix parameters: `vms;max=1`. */
function splitSegment(segment: string): { name: string; pairs: [string, string][] } {
  const [name = "", ...parts] = segment.split(";");
  const pairs = parts
    .filter((part) => part !== "")
    .map((part): [string, string] => {
      const [key = "", ...value] = part.split("=");
      return [key, value.join("=")];
    });
  return { name, pairs };
}

/**
 * The version: of the path, else of the header `Version`, else that of the tree (3 at `/api`, 4 at `/ovirt-engine/api`).
 *
 * @throws BareStatus 400 for one that is not served
 */
function versionOf(byPath: string | undefined, byHeader: string | undefined, byTree: Version): Version {
  const asked = byPath ?? byHeader?.trim() ?? String(byTree);
  if (asked !== "3" && asked !== "4") throw new BareStatus(400);
  return asked === "3" ? 3 : 4;
}

/** Whether a path belongs to this dialect's trees. */
export const isBelow = (path: string): boolean => /^\/+(api|ovirt-engine)(\/|;|%3b|$)/i.test(path);

/**
 * Null where the path is in none of the two trees. Segments are decoded before matrix parameters are taken from them: some clients encode
 * the semicolon. Empty segments do not count.
 *
 * @throws BareStatus 400, 404
 */
export function addressOf(req: Request, proxyPath: string): Address | null {
  const [path = "", ...query] = req.url.split("?");
  const parts = path.split("/").filter(Boolean).map(decode).map(splitSegment);
  const names = parts.map(({ name }) => name);
  const root = roots.find(({ path: start }) => start.every((name, at) => names[at] === name));
  if (!root) return null;
  const depth = root.path.length;
  const byPath = /^v(\d+)$/.exec(names[depth] ?? "")?.[1];
  const version = versionOf(byPath, req.get("version"), root.version);
  const skipped = depth + (byPath === undefined ? 0 : 1);
  const matrix = parts.at(-1)?.pairs ?? [];
  return {
    version,
    prefix: `${proxyPath}/${names.slice(0, skipped).join("/")}`,
    segments: names.slice(skipped),
    parameters: new Parameters([...new URLSearchParams(query.join("?")), ...matrix]),
  };
}
