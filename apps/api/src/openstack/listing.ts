import { type Page, seesAll } from "@tephra/control";
import { badRequest } from "../http/refusals.ts";
import type { Answer, Call } from "./call.ts";
import { isStorable } from "./fields.ts";
import { nextLink } from "./links.ts";
import { type Microversion, since } from "./microversions.ts";

const offsetMax = 2_147_483_647;

const wordsTrue = ["t", "true", "on", "y", "yes", "1"];
const wordsFalse = ["f", "false", "off", "n", "no", "0"];

/** Boolean query values (cinder-api 1.7), case-insensitive; null for anything else. */
export function booleanWord(text: string): boolean | null {
  const word = text.toLowerCase();
  if (wordsTrue.includes(word)) return true;
  return wordsFalse.includes(word) ? false : null;
}

/** Parameters that are never filters. Only the first occurrence counts: a repeated one is treated as a filter. */
const notFilters = ["limit", "offset", "marker", "sort", "sort_key", "sort_dir"];

export interface ListSpec<Key extends string> {
  /** Wire name → sort key of the verb, with its first microversion where that is not 3.0. */
  sortKeys: Readonly<Record<string, Key>>;
  sortKeysSince?: Readonly<Record<string, Microversion>>;
  /** Filters for all callers. */
  filters: readonly string[];
  /** Additional filters for admins. */
  adminFilters?: readonly string[];
  /** Filters that an admin may suffix with `~` to match substrings. */
  likeFilters?: readonly string[];
  /** The meaning of an admin's `all_tenants` when it is not a boolean; Cinder's lists differ here. @throws Refusal 400 */
  notBoolean?: (text: string) => boolean;
}

export interface ListQuery<Key extends string> {
  page: Page<Key>;
  filters: Readonly<Record<string, string>>;
  allProjects: boolean;
  withCount: boolean;
  /** An admin used a filter that matches no column: Cinder responds with an empty list. */
  nothing: boolean;
}

function integer(text: string, name: string): number {
  if (!/^\s*[+-]?\d+(_\d+)*\s*$/.test(text)) throw badRequest(`${name} must be an integer`);
  return Number(text.replaceAll("_", ""));
}

function pageOf({ query, listMax }: Call): { limit: number; offset: number; marker?: string } {
  const limitText = query.get("limit");
  const limit = limitText === null ? listMax : integer(limitText, "limit param");
  if (limit < 0) throw badRequest("limit param must be positive");
  const offset = integer(query.get("offset") ?? "0", "offset");
  if (offset < 0) throw badRequest("offset must be >= 0");
  if (offset > offsetMax) throw badRequest(`offset must be <= ${offsetMax}`);
  const marker = query.get("marker");
  return { limit: Math.min(limit, listMax), offset, ...(marker !== null && { marker }) };
}

/** Sort keys and directions in either of the two query forms. */
function sortParts({ query }: Call): { name: string; direction: string }[] {
  const both = query.get("sort");
  if (both === null) {
    const [name, direction] = [query.get("sort_key") ?? "created_at", query.get("sort_dir") ?? "desc"];
    return [{ name: name.trim(), direction: direction.trim() }];
  }
  if (query.has("sort_key") || query.has("sort_dir")) {
    throw badRequest(
      "The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with the 'sort' parameter.",
    );
  }
  return both.split(",").map((part) => {
    const [name = "", ...direction] = part.split(":");
    return { name: name.trim(), direction: direction.join(":").trim() || "desc" };
  });
}

function sortOf<Key extends string>(
  call: Call,
  spec: ListSpec<Key>,
  parts: ReturnType<typeof sortParts>,
): Page<Key>["sort"] {
  if (parts.some(({ direction }) => direction !== "asc" && direction !== "desc")) {
    throw badRequest("Invalid input received: Unknown sort direction, must be 'desc' or 'asc'.");
  }
  const sort = parts.map(({ name, direction }) => {
    const key = spec.sortKeys[name];
    const known = Object.hasOwn(spec.sortKeys, name) && call.version >= (spec.sortKeysSince?.[name] ?? 0);
    if (key === undefined || !known) throw badRequest("Invalid input received: Invalid sort key");
    return { key, direction: direction === "asc" ? "asc" : "desc" } as const;
  });
  // For a repeated key, its first position counts.
  return sort.filter((s, i) => sort.findIndex((other) => other.key === s.key) === i);
}

/** Names that Cinder translates into columns, but only in versions that also refuse unknown filters. */
const translated = ["name", "description"];

/** Cinder documents `key~` from 3.34 on; admins can use it earlier. */
function adminFiltersOf(spec: ListSpec<string>, version: Microversion): string[] {
  const likes = (spec.likeFilters ?? []).filter(
    (name) => version >= since.unknownFilterRefused || !translated.includes(name),
  );
  return [...spec.filters, ...(spec.adminFilters ?? []), ...likes.map((name) => `${name}~`)];
}

/** The query without the list's own parameters. */
function filterPairs(call: Call): Map<string, string> {
  const taken = call.version >= since.withCount ? [...notFilters, "with_count"] : notFilters;
  const pairs = [...call.query];
  const isFirst = (key: string, i: number): boolean => pairs.findIndex(([other]) => other === key) === i;
  return new Map(pairs.filter(([key], i) => key !== "all_tenants" && !(taken.includes(key) && isFirst(key, i))));
}

function filtersOf<Key extends string>(call: Call, spec: ListSpec<Key>): Pick<ListQuery<Key>, "filters" | "nothing"> {
  const given = filterPairs(call);
  const strictly = call.version >= since.unknownFilterRefused;
  for (const [key, value] of given) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is ASCII by definition
    const ascii = /^[\x00-\x7f]*$/.test(key);
    if (strictly && !ascii) throw badRequest("Filter keys can only contain ASCII characters.");
    if (!isStorable(value))
      throw badRequest(`Invalid input received: filter ${key} has characters that cannot be stored`);
  }
  const all = seesAll(call.principal);
  const known = all ? adminFiltersOf(spec, call.version) : spec.filters;
  const unknown = [...given.keys()].filter((key) => !known.includes(key));
  if (unknown.length > 0 && !all && strictly) {
    throw badRequest(`Invalid filters ${unknown.join(",")} are found in query options.`);
  }
  const filters = Object.fromEntries([...given].filter(([key]) => known.includes(key)));
  return { filters, nothing: all && unknown.length > 0 };
}

function noBoolean(text: string): never {
  throw badRequest(`all_tenants must be a boolean, got '${text}'.`);
}

function allTenants(call: Call, { notBoolean = noBoolean }: Pick<ListSpec<string>, "notBoolean">): boolean {
  const text = call.query.get("all_tenants");
  if (text === null || !seesAll(call.principal)) return false;
  return booleanWord(text) ?? notBoolean(text);
}

/** A boolean query parameter, false when absent. @throws Refusal 400 for a non-boolean value */
export function flagOf(query: URLSearchParams, name: string): boolean {
  const text = query.get(name) ?? "false";
  const value = booleanWord(text);
  if (value === null) throw badRequest(`Value '${text}' for '${name}' is not a boolean.`);
  return value;
}

const withCount = (call: Call): boolean => call.version >= since.withCount && flagOf(call.query, "with_count");

/** Query → page, filters and switches of a list (cinder-api 5.1 to 5.4). @throws Refusal 400 */
export function parseList<Key extends string>(call: Call, spec: ListSpec<Key>): ListQuery<Key> {
  // Validated in Cinder's order.
  const page = pageOf(call);
  const parts = sortParts(call);
  const counted = withCount(call);
  const { filters: given, nothing } = filtersOf(call, spec);
  const allProjects = allTenants(call, spec);
  // Without `all_tenants` the list is the caller's own project, whatever the filter says.
  const { project_id: _own, ...filters } = given;
  const sort = sortOf(call, spec, parts);
  return { page: { ...page, sort }, allProjects, withCount: counted, filters: allProjects ? given : filters, nothing };
}

/**
 * The envelope of a list. It contains a link to the next page when the page is not empty and its limit does not exceed the number of
 * items, or the total where that is requested (cinder-api 5.4).
 */
export function listAnswer<Row extends { id: string }>(
  call: Call,
  query: Pick<ListQuery<string>, "page" | "withCount">,
  list: {
    name: string;
    links?: string;
    rows: readonly Row[];
    /** The page ended before its limit, and more items follow. */
    cut?: boolean;
    count: number;
    view: (call: Call, row: Row) => unknown;
  },
): Answer {
  const last = list.rows.at(-1);
  const items = (query.withCount && list.count) || list.rows.length;
  const more = last !== undefined && (list.cut || query.page.limit <= items);
  return {
    status: 200,
    body: {
      [list.name]: list.rows.map((row) => list.view(call, row)),
      ...(more && { [list.links ?? `${list.name}_links`]: [nextLink(call.place, call.query, last.id)] }),
      ...(query.withCount && { count: list.count }),
    },
  };
}
