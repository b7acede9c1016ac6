import sax from "sax";
import { RefusedError } from "../../errors.ts";

/** What a description of a machine may be at most: certificates and NVRAM are in it. */
const bytesMax = 8 * 1024 * 1024;
const depthMax = 64;
const elementsMax = 100_000;
const attributesMax = 1_000;

/** An element with its canonical name: without a prefix for OVF's own namespace and for none, otherwise `prefix:local`. */
export interface XmlElement {
  name: string;
  /** By canonical name; those of OVF's namespace have the prefix `ovf`. */
  attributes: Map<string, string>;
  children: (XmlElement | string)[];
}

/** Prefix → address, of every namespace that a document uses. */
export type Namespaces = Map<string, string>;

export interface XmlDocument {
  root: XmlElement;
  namespaces: Namespaces;
}

/** Prefixes as oVirt writes them. Addresses are also understood without the last slash. */
export const ownNamespaces: ReadonlyMap<string, string> = new Map([
  ["ovf", "http://schemas.dmtf.org/ovf/envelope/1/"],
  ["rasd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"],
  ["vssd", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"],
  ["xsi", "http://www.w3.org/2001/XMLSchema-instance"],
  ["bk", "urn:tephra:ovf:1"],
]);

const withoutSlash = (address: string): string => address.replace(/\/$/, "");
const knownPrefixes = new Map([...ownNamespaces].map(([prefix, address]) => [withoutSlash(address), prefix]));

export const unreadable = (why: string): RefusedError =>
  new RefusedError("ovf-unreadable", `The OVF configuration could not be parsed: ${why}.`, { why });

/** Characters that XML 1.0 cannot hold, and halves of pairs. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that are refused
const forbidden = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/;

function checked(text: string): string {
  if (forbidden.test(text) || !text.isWellFormed()) throw unreadable("it has a character that XML does not allow");
  return text;
}

/** The description of the package's options lacks the one that leaves XML's own entities alone. */
const strictly: sax.SAXOptions & { strictEntities: boolean } = { xmlns: true, strictEntities: true, position: false };

/** Gives each foreign namespace a prefix that no other has. */
class Names {
  readonly namespaces: Namespaces = new Map(ownNamespaces);
  readonly #prefixes = new Map(knownPrefixes);

  #prefixOf(address: string, wanted: string): string {
    const key = withoutSlash(address);
    const known = this.#prefixes.get(key);
    if (known !== undefined) return known;
    const base = /^[A-Za-z_][\w.-]*$/.test(wanted) && !/^xml/i.test(wanted) ? wanted : "ns";
    let prefix = base;
    for (let at = 2; this.namespaces.has(prefix); at += 1) prefix = `${base}${at}`;
    this.#prefixes.set(key, prefix);
    this.namespaces.set(prefix, address);
    return prefix;
  }

  element({ local, prefix, uri }: { local: string; prefix: string; uri: string }): string {
    if (uri === "") return local;
    const canonical = this.#prefixOf(uri, prefix);
    return canonical === "ovf" ? local : `${canonical}:${local}`;
  }

  attribute({ local, prefix, uri }: { local: string; prefix: string; uri: string }): string {
    if (prefix === "xml") return `xml:${local}`;
    return uri === "" || prefix === "" ? local : `${this.#prefixOf(uri, prefix)}:${local}`;
  }
}

/**
 * Reads a document whose sender is not trusted: no DOCTYPE, no entities but XML's own five, no processing instructions; bounded in length,
 * depth and number of elements. Comments, and space between elements, are dropped.
 *
 * @throws RefusedError (`ovf-unreadable`)
 */
export function parseXml(text: string): XmlDocument {
  if (Buffer.byteLength(text) > bytesMax) throw unreadable("it is too long");
  const names = new Names();
  const open: XmlElement[] = [];
  let root: XmlElement | null = null;
  let elements = 0;
  const parser = sax.parser(true, strictly);
  const addText = (piece: string): void => {
    const at = open.at(-1)?.children;
    if (at === undefined) return;
    if (typeof at.at(-1) === "string") at[at.length - 1] += piece;
    else at.push(piece);
  };
  parser.onerror = (error) => {
    throw unreadable(error.message.split("\n")[0] ?? "it is not well-formed");
  };
  parser.ondoctype = () => {
    throw unreadable("it has a DOCTYPE");
  };
  parser.onprocessinginstruction = ({ name }) => {
    if (name.toLowerCase() !== "xml" || root !== null) throw unreadable("it has a processing instruction");
  };
  parser.ontext = addText;
  parser.oncdata = addText;
  parser.onopentag = (tag) => {
    const { attributes: given, ...name } = tag as sax.QualifiedTag;
    elements += 1;
    if (open.length >= depthMax || elements > elementsMax) throw unreadable("it has too many elements, one in another");
    const all = Object.values(given).filter(({ prefix, name: whole }) => prefix !== "xmlns" && whole !== "xmlns");
    if (all.length > attributesMax) throw unreadable("an element has too many attributes");
    const attributes = new Map(all.map((attribute) => [names.attribute(attribute), checked(attribute.value)]));
    const element: XmlElement = { name: names.element(name), attributes, children: [] };
    if (open.length === 0 && root !== null) throw unreadable("it has two roots");
    root ??= element;
    open.at(-1)?.children.push(element);
    open.push(element);
  };
  parser.onclosetag = () => {
    const { children = [] } = open.pop() ?? {};
    const nested = children.some((child) => typeof child !== "string");
    const blank = (child: XmlElement | string): boolean => typeof child === "string" && child.trim() === "";
    const kept = nested ? children.filter((child) => !blank(child)) : children;
    for (const child of kept) if (typeof child === "string") checked(child);
    children.splice(0, children.length, ...kept);
  };
  parser.write(text.replace(/^\ufeff/, "")).close();
  if (root === null || open.length > 0) throw unreadable("it has no root");
  return { root, namespaces: names.namespaces };
}

const escapes: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "\r": "&#13;",
  "\n": "&#10;",
  "\t": "&#9;",
};
const escapeText = (text: string): string => text.replace(/[&<>\r]/g, (character) => escapes[character] ?? character);
const escapeValue = (text: string): string =>
  text.replace(/[&<>"\r\n\t]/g, (character) => escapes[character] ?? character);

const prefixOf = (name: string): string | null => (name.includes(":") ? (name.split(":", 1)[0] ?? null) : null);

function usedPrefixes(element: XmlElement, into: Set<string>): Set<string> {
  for (const name of [element.name, ...element.attributes.keys()]) {
    const prefix = prefixOf(name);
    if (prefix !== null && prefix !== "xml") into.add(prefix);
  }
  for (const child of element.children) if (typeof child !== "string") usedPrefixes(child, into);
  return into;
}

function write(element: XmlElement, declared: string): string {
  const attributes = [...element.attributes].map(([name, value]) => ` ${name}="${escapeValue(value)}"`).join("");
  const start = `<${element.name}${declared}${attributes}`;
  if (element.children.length === 0) return `${start}/>`;
  const inside = element.children.map((child) => (typeof child === "string" ? escapeText(child) : write(child, "")));
  return `${start}>${inside.join("")}</${element.name}>`;
}

/** The element as a document of its own, without a declaration: every namespace that it uses is named in it. */
export function printXml(root: XmlElement, namespaces: ReadonlyMap<string, string>): string {
  const prefixes = [...usedPrefixes(root, new Set())].sort();
  return write(
    root,
    prefixes.map((prefix) => ` xmlns:${prefix}="${escapeValue(namespaces.get(prefix) ?? "")}"`).join(""),
  );
}

/** A new element; attributes whose value is null are left out. */
export function element(
  name: string,
  attributes: Readonly<Record<string, string | null>> = {},
  children: readonly (XmlElement | string)[] = [],
): XmlElement {
  const given = Object.entries(attributes).filter((entry): entry is [string, string] => entry[1] !== null);
  return { name, attributes: new Map(given), children: children.filter((child) => child !== "") };
}

export const elementsOf = (parent: XmlElement): XmlElement[] =>
  parent.children.filter((child): child is XmlElement => typeof child !== "string");

export const childOf = (parent: XmlElement, ...names: readonly string[]): XmlElement | undefined =>
  elementsOf(parent).find(({ name }) => names.includes(name));

/** The text of the element itself. */
export const textOf = (of: XmlElement): string => of.children.filter((child) => typeof child === "string").join("");

/** The text of a child, trimmed; undefined where there is none. */
export function childText(parent: XmlElement, ...names: readonly string[]): string | undefined {
  const child = childOf(parent, ...names);
  return child && textOf(child).trim();
}

/** Sets the text of a child, which is added where there is none; null removes it. */
export function setChild(parent: XmlElement, name: string, text: string | null): void {
  const child = childOf(parent, name);
  if (text === null) {
    if (child) parent.children.splice(parent.children.indexOf(child), 1);
  } else if (child) child.children = text === "" ? [] : [text];
  else parent.children.push(element(name, {}, [text]));
}

/** An attribute of OVF's, which some write without its prefix. */
export const attributeOf = (of: XmlElement, name: string): string | undefined =>
  of.attributes.get(`ovf:${name}`) ?? of.attributes.get(name);
