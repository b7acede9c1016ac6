import sax from "sax";
import { Body, depthMax, elementsMax, malformed } from "./body.ts";
import { withoutForbidden } from "./characters.ts";
import {
  type Element,
  isList,
  type List,
  type Root,
  relationsOf,
  type Scalar,
  timeText,
  type Value,
} from "./element.ts";

interface Open {
  name: string;
  id: string | undefined;
  href: string | undefined;
  text: string[];
  children: Map<string, Body[]>;
}

/** Without `strictEntities` the parser would know the entities of HTML. */
const options: sax.SAXOptions & { strictEntities: boolean } = { strictEntities: true, trim: false, normalize: false };

const closed = ({ name, id, href, text, children }: Open): Body =>
  new Body({ name, text: text.join(""), id, href, children });

/**
 * Reads a body. No document type, no entities but the five of XML itself, no processing instructions; nesting and the number of elements
 * are limited. Attributes other than `id` and `href` are ignored.
 *
 * @throws OvirtFault 400
 */
export function readXml(text: string): Body {
  const parser = sax.parser(true, options);
  const open: Open[] = [];
  let root: Body | null = null;
  let elements = 0;
  const refuse = (reason: string): never => {
    throw malformed(reason);
  };
  parser.onerror = (error) => refuse(error.message.split("\n")[0] ?? "");
  parser.ondoctype = () => refuse("A document type is not allowed");
  parser.onprocessinginstruction = ({ name, body }) => {
    const declared = /encoding\s*=\s*["']([^"']*)["']/.exec(body)?.[1] ?? "utf-8";
    if (name !== "xml" || elements > 0) refuse("Processing instructions are not allowed");
    if (!/^(utf-8|us-ascii)$/i.test(declared)) refuse("The encoding must be UTF-8");
  };
  parser.onopentag = ({ name, attributes }) => {
    elements += 1;
    if (open.length >= depthMax) refuse("Too deeply nested");
    if (elements > elementsMax) refuse("Too many elements");
    if (root !== null) refuse("More than one outermost element");
    const { id, href } = attributes as Record<string, string | undefined>;
    open.push({ name, id, href, text: [], children: new Map() });
  };
  const addText = (part: string): void => {
    open.at(-1)?.text.push(part);
  };
  parser.ontext = addText;
  parser.oncdata = addText;
  parser.onclosetag = () => {
    const ended = open.pop();
    if (!ended) return;
    const body = closed(ended);
    const parent = open.at(-1);
    if (!parent) root = body;
    else {
      const siblings = parent.children.get(body.name);
      if (siblings) siblings.push(body);
      else parent.children.set(body.name, [body]);
    }
  };
  parser.write(text).close();
  return root ?? refuse("No element");
}

const escapes: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  // A parser would turn it into a line feed.
  "\r": "&#xD;",
};
const attributeEscapes: Readonly<Record<string, string>> = { ...escapes, "\n": "&#xA;", "\t": "&#x9;" };

const escapeText = (text: string): string =>
  withoutForbidden(text).replace(/[&<>\r]/g, (letter) => escapes[letter] ?? "");

const escapeAttribute = (text: string): string =>
  withoutForbidden(text).replace(/[&<>"\r\n\t]/g, (letter) => attributeEscapes[letter] ?? "");

const scalarText = (value: Scalar): string => (value instanceof Date ? timeText(value) : String(value));

const indentation = "    ";

const isScalar = (value: Exclude<Value, null | undefined>): value is Scalar =>
  typeof value !== "object" || value instanceof Date;

/** Fields that stand before the links, as the engine writes them. */
const beforeLinks = new Set(["name", "description", "comment"]);

/** Writes elements whose hrefs begin with `prefix`. */
function writerOf(prefix: string) {
  const lines: string[] = [];
  const attributesOf = ({ path, id }: Element): string =>
    (path === undefined ? "" : ` href="${escapeAttribute(prefix + path)}"`) +
    (id === undefined ? "" : ` id="${escapeAttribute(id)}"`);
  const writeLinks = (links: [string, string][], indent: string): void => {
    for (const [rel, path] of links) {
      lines.push(`${indent}<link href="${escapeAttribute(prefix + path)}" rel="${escapeAttribute(rel)}"/>`);
    }
  };

  const writeInside = (name: string, attributes: string, indent: string, inside: (indent: string) => void): void => {
    const start = lines.push("") - 1;
    inside(indent + indentation);
    const isEmpty = lines.length === start + 1;
    lines[start] = `${indent}<${name}${attributes}${isEmpty ? "/" : ""}>`;
    if (!isEmpty) lines.push(`${indent}</${name}>`);
  };

  const writeValue = (name: string, value: Value, indent: string): void => {
    if (value === null || value === undefined) return;
    if (isScalar(value)) lines.push(`${indent}<${name}>${escapeText(scalarText(value))}</${name}>`);
    else if (isList(value)) writeList(name, value, indent);
    else writeElement(name, value, indent);
  };

  const writeList = (name: string, { item, items }: List, indent: string): void =>
    writeInside(name, "", indent, (deeper) => {
      for (const value of items) writeValue(item, value, deeper);
    });

  const writeElement = (name: string, element: Element, indent: string): void =>
    writeInside(name, attributesOf(element), indent, (deeper) => {
      const { links, actions } = relationsOf(element);
      if (actions.length > 0) writeInside("actions", "", deeper, (deepest) => writeLinks(actions, deepest));
      const fields = Object.entries(element.fields ?? {});
      const found = fields.findIndex(([field]) => !beforeLinks.has(field));
      const first = found < 0 ? fields.length : found;
      for (const [field, value] of fields.slice(0, first)) writeValue(field, value, deeper);
      writeLinks(links, deeper);
      for (const [field, value] of fields.slice(first)) writeValue(field, value, deeper);
    });

  return {
    write: ({ name, value }: Root): string => {
      writeValue(name, value, "");
      return lines.join("\n");
    },
  };
}

/** The beginning of every XML body: the SDK of version 3 recognises faults by this very text. */
const declaration = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n';

export const writeXml = (root: Root, prefix: string): string => `${declaration}${writerOf(prefix).write(root)}\n`;
