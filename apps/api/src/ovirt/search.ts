import type { Call } from "./call.ts";
import { invalidValue } from "./faults.ts";

/** What a kind of object can be searched by: field in lower case → its values. `bare`: what a word without a field is looked for in. */
export interface Searchable<Item> {
  readonly fields: Readonly<Record<string, (item: Item) => readonly (string | null | undefined)[]>>;
  readonly bare: readonly string[];
}

interface Condition {
  field: string | null;
  isNegated: boolean;
  value: string;
}

/** Any of these lists of conditions, each of which must hold as a whole. */
interface Search {
  any: readonly (readonly Condition[])[];
  sort: { field: string; isDescending: boolean } | null;
  page: number | null;
}

/** Items of a page, where the search names one without `max`. */
const pageItems = 100;
/** Longest search, and most words in it. */
const lengthMax = 4_096;
const wordsMax = 128;

const tokenPattern = /\s*(?:"((?:[^"\\]|\\.)*)"|(!=|=)|([^\s"=!]+))/y;

interface Token {
  kind: "word" | "quoted" | "sign";
  text: string;
}

/** @throws OvirtFault 400 */
function tokensOf(text: string): Token[] {
  if (text.length > lengthMax) throw invalidValue("search: too long");
  const tokens: Token[] = [];
  tokenPattern.lastIndex = 0;
  while (text.slice(tokenPattern.lastIndex).trim() !== "") {
    const start = tokenPattern.lastIndex;
    const found = tokenPattern.exec(text);
    if (!found || tokens.length >= wordsMax)
      throw invalidValue(`search: cannot be read at '${text.slice(start, start + 32)}'`);
    const [, quoted, sign, word] = found;
    if (quoted !== undefined) tokens.push({ kind: "quoted", text: quoted.replace(/\\(.)/g, "$1") });
    else if (sign !== undefined) tokens.push({ kind: "sign", text: sign });
    else tokens.push({ kind: "word", text: word ?? "" });
  }
  return tokens;
}

const isWord = (token: Token | undefined, ...words: string[]): boolean =>
  token?.kind === "word" && words.includes(token.text.toLowerCase());

/** `field=value and other!=value* or word sortby field desc page 2`. @throws OvirtFault 400 */
function parseSearch(text: string): Search {
  const tokens = tokensOf(text);
  const any: Condition[][] = [[]];
  let sort: Search["sort"] = null;
  let page: number | null = null;
  const next = (what: string): string => {
    const token = tokens.shift();
    if (!token || token.kind === "sign") throw invalidValue(`search: ${what} is missing`);
    return token.text;
  };
  while (tokens.length > 0) {
    if (isWord(tokens[0], "sortby") && tokens[1]?.kind !== "sign") {
      tokens.shift();
      sort = { field: next("the field to sort by").toLowerCase(), isDescending: isWord(tokens[0], "desc") };
      if (isWord(tokens[0], "asc", "desc")) tokens.shift();
    } else if (isWord(tokens[0], "page") && /^\d{1,9}$/.test(tokens[1]?.text ?? "")) {
      tokens.shift();
      page = Math.max(1, Number(next("the page")));
    } else if (isWord(tokens[0], "and")) tokens.shift();
    else if (isWord(tokens[0], "or")) {
      tokens.shift();
      any.push([]);
    } else {
      const name = next("a field");
      const sign = tokens[0]?.kind === "sign" ? tokens.shift()?.text : undefined;
      const condition: Condition =
        sign === undefined
          ? { field: null, isNegated: false, value: name }
          : { field: name.toLowerCase(), isNegated: sign === "!=", value: next("a value") };
      any.at(-1)?.push(condition);
    }
  }
  return { any: any.filter((all) => all.length > 0), sort, page };
}

/** Whether a value equals a pattern in which `*` stands for anything; linear in the length of both. */
function isLike(value: string, pattern: string): boolean {
  const [first = "", ...rest] = pattern.split("*");
  if (rest.length === 0) return value === pattern;
  const last = rest.pop() ?? "";
  if (!value.startsWith(first) || !value.endsWith(last) || value.length < first.length + last.length) return false;
  let at = first.length;
  for (const part of rest) {
    const found = value.indexOf(part, at);
    if (found < 0) return false;
    at = found + part.length;
  }
  return at <= value.length - last.length;
}

/**
 * The items that a list shows: those that the search finds, sorted and paged as it says, at most `max`. Values are compared without regard
 * to case unless `case_sensitive`; fields always are.
 *
 * @throws OvirtFault 400 for a search that cannot be read, or names a field that there is not
 */
export function searched<Item>(call: Call, items: readonly Item[], { fields, bare }: Searchable<Item>): Item[] {
  const search = parseSearch(call.parameters.text("search") ?? "");
  const isExact = call.parameters.flag("case_sensitive") ?? false;
  const folded = (text: string): string => (isExact ? text : text.toLowerCase());
  const valuesOf = (item: Item, field: string): string[] => {
    const read = Object.hasOwn(fields, field) ? fields[field] : undefined;
    if (!read) throw invalidValue(`search: there is no field '${field.slice(0, 64)}'`);
    return read(item).flatMap((value) => (value === null || value === undefined ? [] : [folded(value)]));
  };
  const holds = (item: Item, { field, isNegated, value }: Condition): boolean => {
    const names = field === null ? bare : [field];
    const wanted = folded(field === null ? `*${value}*` : value);
    return names.some((name) => valuesOf(item, name).some((each) => isLike(each, wanted))) !== isNegated;
  };
  for (const condition of search.any.flat()) {
    if (condition.field !== null && !Object.hasOwn(fields, condition.field)) {
      throw invalidValue(`search: there is no field '${condition.field.slice(0, 64)}'`);
    }
  }
  const { sort, page, any } = search;
  if (sort && !Object.hasOwn(fields, sort.field))
    throw invalidValue(`search: there is no field '${sort.field.slice(0, 64)}'`);
  const found = items.filter((item) => any.length === 0 || any.some((all) => all.every((each) => holds(item, each))));
  if (sort) {
    const keyOf = (item: Item): string => valuesOf(item, sort.field)[0] ?? "";
    found.sort((x, y) => keyOf(x).localeCompare(keyOf(y), "en", { numeric: true }) * (sort.isDescending ? -1 : 1));
  }
  const max = call.parameters.max();
  const size = max ?? (page === null ? found.length : pageItems);
  const start = ((page ?? 1) - 1) * size;
  return found.slice(start, start + size);
}
