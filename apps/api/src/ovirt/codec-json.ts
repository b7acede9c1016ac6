import { Body, depthMax, elementsMax, malformed } from "./body.ts";
import { type Element, isList, type List, type Root, relationsOf, type Scalar, type Value } from "./element.ts";

/**
 * Reads a parsed JSON body, which has no outermost name: `{"description": "…"}`. Scalars may be of any type; null stands for an absent value.
 *
 * @throws OvirtFault 400
 */
export function readJson(value: unknown): Body {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw malformed("Not an object");
  let elements = 0;

  const bodiesOf = (name: string, content: unknown, depth: number): Body[] => {
    if (content === null || content === undefined) return [];
    if (Array.isArray(content)) return content.flatMap((item) => bodiesOf(name, item, depth + 1));
    return [bodyOf(name, content, depth)];
  };

  const bodyOf = (name: string, content: unknown, depth: number): Body => {
    elements += 1;
    if (depth >= depthMax) throw malformed("Too deeply nested");
    if (elements > elementsMax) throw malformed("Too many elements");
    if (typeof content !== "object" || content === null) {
      return new Body({ name, text: String(content), children: new Map() });
    }
    const children = Object.entries(content).map(
      ([field, inner]) => [field, bodiesOf(field, inner, depth + 1)] as const,
    );
    return new Body({ name, text: "", children: new Map(children.filter(([, bodies]) => bodies.length > 0)) });
  };

  return bodyOf("", value, 0);
}

interface JsonObject {
  [name: string]: JsonValue;
}
type JsonValue = string | number | JsonValue[] | JsonObject;

/** Numbers and booleans are texts, times are milliseconds, as oVirt's engine writes them. */
const scalarJson = (value: Scalar): string | number => (value instanceof Date ? value.getTime() : String(value));

/** JSON of a body whose hrefs begin with `prefix`. A list has the name of its items; an empty one is `{}`. */
export function writeJson({ value }: Root, prefix: string): string {
  const linksJson = (links: [string, string][]): JsonValue[] =>
    links.map(([rel, path]) => ({ href: prefix + path, rel }));

  const valueJson = (content: Exclude<Value, null | undefined>): JsonValue => {
    if (typeof content !== "object" || content instanceof Date) return scalarJson(content);
    return isList(content) ? listJson(content) : elementJson(content);
  };

  const listJson = ({ item, items }: List): JsonObject =>
    items.length === 0 ? {} : { [item]: items.map((inner) => valueJson(inner)) };

  const elementJson = (element: Element): JsonObject => {
    const { links, actions } = relationsOf(element);
    const fields = Object.entries(element.fields ?? {}).flatMap(([name, field]): [string, JsonValue][] =>
      field === null || field === undefined ? [] : [[name, valueJson(field)]],
    );
    return {
      ...(element.path !== undefined && { href: prefix + element.path }),
      ...(element.id !== undefined && { id: element.id }),
      ...(actions.length > 0 && { actions: { link: linksJson(actions) } }),
      ...Object.fromEntries(fields),
      ...(links.length > 0 && { link: linksJson(links) }),
    };
  };

  return JSON.stringify(isList(value) ? listJson(value) : elementJson(value));
}
