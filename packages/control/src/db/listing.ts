import { InvalidError } from "../errors.ts";

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

/** Null sorts as the smallest value of its column, as in Cinder (cinder-api 5.2). */
const orderBy = (key: string, sort: Direction): Order => ({
  [key]: nullable.has(key) ? { sort, nulls: sort === "asc" ? "first" : "last" } : sort,
});

/** Prisma's orderBy: the page's keys, then created_at and id as tie breakers in the first key's direction. */
export function orderOf<Key extends string>(page: Page<Key>): Order[] {
  const direction = page.sort[0]?.direction ?? "desc";
  const keys = page.sort.map((s) => orderBy(s.key, s.direction));
  const tail = ["createdAt", "id"].filter((k) => !page.sort.some((s) => s.key === k)).map((k) => orderBy(k, direction));
  return [...keys, ...tail];
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

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Ids from a path are not validated; one that is not a UUID simply matches nothing. */
export const isUuid = (text: string): boolean => uuidPattern.test(text);

/** Maximum number of expired rows that one statement removes. */
export const forgottenAtOnce = 2_000;

/** A UUID that no row has. */
export const nilUuid = "00000000-0000-0000-0000-000000000000";
