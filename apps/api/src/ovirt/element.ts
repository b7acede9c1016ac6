/**
 * What answers consist of, before they are written as XML or JSON. A resource describes itself once, in version 4; both codecs and
 * version 3 (`version-3.ts`) are derived from that. Absent values (null, undefined) are left out.
 */

export type Scalar = string | number | bigint | boolean | Date;
export type Value = Scalar | Element | List | null | undefined;

/** Field name → value, in the order in which they are written. Names are oVirt's. */
export type Fields = Readonly<Record<string, Value>>;

/** An object. Paths begin behind the prefix by which the client calls the API: `/disks/ID`. */
export interface Element {
  readonly id?: string;
  readonly path?: string;
  /** Names of the actions, whose paths are below the element's. */
  readonly actions?: readonly string[];
  /** Relations: the name of a collection below the element, or with a path of its own. */
  readonly links?: readonly (string | readonly [rel: string, path: string])[];
  readonly fields?: Fields;
}

/** A collection, with the name of each of its items. */
export interface List {
  readonly item: string;
  readonly items: readonly (Element | Scalar)[];
}

/** The outermost element of a body, with its name. */
export interface Root {
  readonly name: string;
  readonly value: Element | List;
}

export const isList = (value: Element | List): value is List => "item" in value;

export const listOf = (item: string, items: List["items"]): List => ({ item, items });

/** An element of nothing but fields, such as `<version><major>4</major></version>`. */
export const group = (fields: Fields): Element => ({ fields });

/** A reference to a resource: its path and id. */
export const reference = (collection: string, id: string): Element => ({ path: `/${collection}/${id}`, id });

/** Links and actions of an element, as relation and path. */
export function relationsOf(element: Element): { links: [string, string][]; actions: [string, string][] } {
  const below = (rel: string): [string, string] => [rel, `${element.path ?? ""}/${rel}`];
  return {
    links: (element.links ?? []).map((link) => (typeof link === "string" ? below(link) : [link[0], link[1]])),
    actions: (element.actions ?? []).map(below),
  };
}

/** As both codecs write times in text: with the offset that Java writes. */
export const timeText = (time: Date): string => time.toISOString().replace("Z", "+00:00");
