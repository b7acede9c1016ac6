import { type Element, type Fields, group, isList, type List, type Root, type Value } from "./element.ts";

/** Elements whose `status` is `<status><state>…`. */
const withState = new Set(["vm", "disk", "host", "storage_domain", "data_center", "nic", "network", "creation"]);

const wrapState = (fields: Fields): Fields =>
  typeof fields["status"] === "string" ? { ...fields, status: group({ state: fields["status"] }) } : fields;

/** `snapshot_type` → `type`. */
const renameSnapshot = ({ snapshot_type: type, ...fields }: Fields): Fields => ({ ...fields, type });

/** `size` beside `provisioned_size`. */
const addSize = (fields: Fields): Fields =>
  fields["provisioned_size"] === undefined ? fields : { ...fields, size: fields["provisioned_size"] };

/**
 * Version 3 writes the same objects with a few fields in another form. This table is all of it: by the element's name, what its fields
 * become (ovirt 3.2).
 */
const changesOf: Readonly<Record<string, readonly ((fields: Fields) => Fields)[]>> = {
  disk: [addSize],
  snapshot: [renameSnapshot],
};

function changeValue(name: string, value: Value): Value {
  if (typeof value !== "object" || value === null || value instanceof Date) return value;
  return isList(value) ? changeList(value) : changeElement(name, value);
}

const changeList = ({ item, items }: List): List => ({
  item,
  items: items.map((value) =>
    typeof value !== "object" || value instanceof Date ? value : changeElement(item, value),
  ),
});

function changeElement(name: string, element: Element): Element {
  if (!element.fields) return element;
  const changes = [...(changesOf[name] ?? []), ...(withState.has(name) ? [wrapState] : [])];
  const changed = changes.reduce((fields, change) => change(fields), element.fields);
  const fields = Object.entries(changed).map(([field, value]) => [field, changeValue(field, value)] as const);
  return { ...element, fields: Object.fromEntries(fields) };
}

/** What a client of version 3 gets for what is described in version 4. */
export const asVersionThree = ({ name, value }: Root): Root => ({
  name,
  value: isList(value) ? changeList(value) : changeElement(name, value),
});
