import { hasForbidden } from "./characters.ts";
import { OvirtFault } from "./faults.ts";

/** Maximum number of elements in a body, and of their nesting: no client sends a tenth of it. */
export const elementsMax = 100_000;
export const depthMax = 64;
/** Maximum length of a body. Configurations with the state of a machine's firmware are long. */
export const bodyBytesMax = 8 * 1024 * 1024;

/** A body that neither codec can read. */
export const malformed = (detail: string): OvirtFault => new OvirtFault(400, "Malformed request body", [detail]);

const invalid = (name: string, value: string, wanted: string): OvirtFault =>
  new OvirtFault(400, "Invalid value", [`${name}: '${value.slice(0, 64)}' is not ${wanted}`]);

/**
 * An object of a request's body, read from XML or JSON alike. `text` is that of a scalar, with the white space around it; `id` and `href`
 * are attributes in XML and fields in JSON.
 */
export class Body {
  readonly name: string;
  readonly text: string;
  readonly id: string | undefined;
  readonly href: string | undefined;
  readonly #children: ReadonlyMap<string, readonly Body[]>;

  constructor(parts: {
    name: string;
    text: string;
    id?: string | undefined;
    href?: string | undefined;
    children: ReadonlyMap<string, readonly Body[]>;
  }) {
    if (hasForbidden(parts.text)) throw malformed("A character that XML cannot hold");
    this.name = parts.name;
    this.text = parts.text;
    this.#children = parts.children;
    this.id = parts.id ?? this.string("id");
    this.href = parts.href ?? this.string("href");
  }

  /** The element of this name, or along a path of names; undefined when there is none. Of several, the last. */
  at(...path: string[]): Body | undefined {
    const [name, ...rest] = path;
    if (name === undefined) return this;
    return this.#children
      .get(name)
      ?.at(-1)
      ?.at(...rest);
  }

  has(...path: string[]): boolean {
    return this.at(...path) !== undefined;
  }

  /** Every element of this name. */
  all(name: string): readonly Body[] {
    return this.#children.get(name) ?? [];
  }

  /** The items of a collection: `items("disks", "disk")`. Undefined when there is no such collection, empty when it has no items. */
  items(collection: string, item: string): readonly Body[] | undefined {
    const found = this.all(collection);
    return found.length === 0 ? undefined : found.flatMap((list) => [...list.all(item)]);
  }

  /** Names of the elements below. */
  names(): string[] {
    return [...this.#children.keys()];
  }

  /** A text without the white space around it. */
  string(...path: string[]): string | undefined {
    return this.at(...path)?.text.trim();
  }

  /** @throws OvirtFault 400 for anything but `true` and `false` */
  boolean(...path: string[]): boolean | undefined {
    const text = this.string(...path);
    if (text === undefined) return undefined;
    if (text !== "true" && text !== "false") throw invalid(path.join("."), text, "a boolean");
    return text === "true";
  }

  /** A whole number. @throws OvirtFault 400 for anything else, or one outside the bounds */
  integer(path: readonly string[], { min, max }: { min: number; max: number }): number | undefined {
    const text = this.string(...path);
    if (text === undefined) return undefined;
    const number = /^-?\d{1,20}$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(number) || number < min || number > max) {
      throw invalid(path.join("."), text, `a whole number from ${min} to ${max}`);
    }
    return number;
  }

  /** One of the words. @throws OvirtFault 400 for another */
  oneOf<T extends string>(path: readonly string[], words: readonly T[]): T | undefined {
    const text = this.string(...path);
    if (text === undefined) return undefined;
    const found = words.find((word) => word === text.toLowerCase());
    if (found === undefined) throw invalid(path.join("."), text, `one of ${words.join(", ")}`);
    return found;
  }
}

/** The body of a request that has none. */
export const noBody = new Body({ name: "", text: "", children: new Map() });
