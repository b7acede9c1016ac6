import { InvalidError } from "../errors.ts";
import { Prisma } from "../generated/client.ts";

/** One page of a list: sort keys, most significant first, then where to begin. `limit` has already been bounded by the dialect. */
export interface Page<Key extends string> {
  sort: readonly { key: Key; direction: "asc" | "desc" }[];
  limit: number;
  offset: number;
  /** Id of the last item of the previous page. */
  marker?: string;
}

type Direction = "asc" | "desc";
type Order = Record<string, Direction | { sort: Direction; nulls: "first" | "last" }>;

/** Sort keys whose column may be null. */
const nullable: ReadonlySet<string> = new Set([
  "updatedAt",
  "name",
  "container",
  "snapshotId",
  "sourceVolumeId",
  "launchedAt",
  "parentId",
  "failReason",
  "description",
  "availabilityZone",
  "service",
  "serviceMetadata",
  "host",
  "encryptionKeyId",
  "restoreVolumeId",
  "deletedAt",
]);

const isNullable = (key: string): boolean => nullable.has(key);

/** All that decides the order of a page: its keys, then created_at and id as tie breakers in the first key's direction. */
function orderKeys<Key extends string>(page: Page<Key>): { key: Key; direction: Direction }[] {
  const direction = page.sort[0]?.direction ?? "desc";
  const tail = (["createdAt", "id"] as Key[]).filter((key) => !page.sort.some((s) => s.key === key));
  return [...page.sort, ...tail.map((key) => ({ key, direction }))];
}

/** Null sorts as the smallest value of its column, as in Cinder (cinder-api 5.2). */
const nullsOf = (direction: Direction): "first" | "last" => (direction === "asc" ? "first" : "last");

/** Prisma's orderBy. */
export const orderOf = <Key extends string>(page: Page<Key>): Order[] =>
  orderKeys(page).map(({ key, direction }) => ({
    [key]: isNullable(key) ? { sort: direction, nulls: nullsOf(direction) } : direction,
  }));

/** The columns by which a list can be sorted, created_at and id among them: the name of each, and the type of a value to compare with. */
export type SqlColumns<Key extends string> = Readonly<Record<Key, { name: string; type: string }>>;

/** SQL, to follow ORDER BY. */
export function orderSql<Key extends string>(page: Page<NoInfer<Key>>, columns: SqlColumns<Key>): Prisma.Sql {
  const parts = orderKeys<Key>(page).map(({ key, direction }) => {
    const nulls = isNullable(key) ? ` NULLS ${nullsOf(direction)}` : "";
    return `${columns[key].name} ${direction}${nulls}`;
  });
  return Prisma.raw(parts.join(", "));
}

/** SQL: whether a row comes after this one, the page's marker, in the order of `orderSql`. */
export function afterMarker<Key extends string>(
  page: Page<NoInfer<Key>>,
  columns: SqlColumns<Key>,
  marker: Readonly<Record<Key, unknown>>,
): Prisma.Sql {
  const keys = orderKeys<Key>(page).map(({ key, direction }) => ({
    ...{ direction, mayBeNull: isNullable(key), isNull: marker[key] === null },
    name: Prisma.raw(columns[key].name),
    value: Prisma.sql`${marker[key]}::${Prisma.raw(columns[key].type)}`,
    sign: Prisma.raw(direction === "asc" ? ">" : "<"),
  }));
  const [first] = keys;
  // One comparison of rows is where an index of this order can begin.
  if (first && keys.every(({ mayBeNull, direction }) => !mayBeNull && direction === first.direction)) {
    const [names, values] = [keys.map(({ name }) => name), keys.map(({ value }) => value)];
    return Prisma.sql`(${Prisma.join(names)}) ${first.sign} (${Prisma.join(values)})`;
  }
  return keys.reduceRight((rest, { name, value, sign, direction, mayBeNull, isNull }) => {
    // Null is the smallest.
    if (isNull && direction === "asc") return Prisma.sql`(${name} IS NOT NULL OR ${rest})`;
    if (isNull) return Prisma.sql`(${name} IS NULL AND ${rest})`;
    const orNull = mayBeNull && direction === "desc" ? Prisma.sql`${name} IS NULL OR ` : Prisma.empty;
    return Prisma.sql`(${orNull}${name} ${sign} ${value} OR ${name} = ${value} AND ${rest})`;
  }, Prisma.sql`false`);
}

/** Prisma's skip, take and cursor. The marker's row must exist: the verb checks that it is visible first. */
export function windowOf(page: Page<string>): { skip: number; take: number; cursor?: { id: string } } {
  if (page.offset < 0) throw new InvalidError("input", "offset must be >= 0");
  return page.marker === undefined
    ? { skip: page.offset, take: page.limit }
    : { skip: page.offset + 1, take: page.limit, cursor: { id: page.marker } };
}

/** Prisma's condition that a text equals this one, ignoring case. It becomes ILIKE, so ILIKE's wildcards are escaped. */
export const equalText = (text: string): { equals: string; mode: "insensitive" } => ({
  equals: text.replace(/[\\%_]/g, "\\$&"),
  mode: "insensitive",
});

/** Prisma's condition that a text contains `part`, ignoring case; `%` and `_` in it are wildcards. */
export const containing = (part: string): { contains: string; mode: "insensitive" } => ({
  contains: part,
  mode: "insensitive",
});

/** SQL: whether the name of a row with this alias has such a part, or its id begins so. */
export const matching = (alias: "b" | "v" | "i", text: string): Prisma.Sql => {
  const of = Prisma.raw(alias);
  const escaped = (words: string): string => words.replace(/[\\%_]/g, "\\$&");
  return Prisma.sql`(${of}.name ILIKE ${`%${escaped(text)}%`} OR ${of}.id::text LIKE ${`${escaped(text.toLowerCase())}%`})`;
};

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Ids from a path are not validated; one that is not a UUID simply matches nothing. */
export const isUuid = (text: string): boolean => uuidPattern.test(text);

/** Maximum number of expired rows that one statement removes. */
export const forgottenAtOnce = 2_000;

/** A UUID that no row has. */
export const nilUuid = "00000000-0000-0000-0000-000000000000";
