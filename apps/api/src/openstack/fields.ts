import { z } from "zod";
import { undecodable } from "../http/readable-url.ts";
import type { Microversion } from "./microversions.ts";
import { decodeBase64 } from "./python-base64.ts";
import { pythonRepr } from "./python-text.ts";

/** One schema per body and range of microversions; each is built once. */
export const byVersion =
  <Schema>(versions: readonly [Microversion, Schema][]) =>
  (version: Microversion): Schema => {
    const found = versions.findLast(([from]) => version >= from) ?? versions[0];
    if (!found) throw new Error("a body needs at least one schema");
    return found[1];
  };

const Anything = z.unknown();

/** Where a body is expected, and nothing of it matters. */
export const anyBody = () => Anything;

/** Fields of bodies, each with the phrases of Cinder's validator (cinder-api 1.6, 1.7, 4.4). */

/** What the validator says of a value of the wrong type. */
export const typePhrase =
  (...types: string[]) =>
  ({ input }: { input?: unknown }): string =>
    `${pythonRepr(input)} is not of type ${types.map((t) => `'${t}'`).join(", ")}`;

/** Characters, as Python counts them. */
export const lengthOf = (text: string): number => (text.length > 255 ? [...text].length : text.length);

/** PostgreSQL stores neither NUL nor half of a surrogate pair. */
export const isStorable = (text: string): boolean => !text.includes("\0") && text.isWellFormed();

const bounded = (text: z.ZodString) =>
  text
    .refine((v) => lengthOf(v) <= 255, { error: (i) => `${pythonRepr(i.input)} is too long` })
    .refine(isStorable, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` })
    .meta({ maxLength: 255 });

/** Every field of an object that is sent must fit; what is not an object is no body. */
export const strict = <Shape extends z.ZodRawShape>(shape: Shape) =>
  z.strictObject(shape, { error: typePhrase("object") });

/** As `strict`; null is an empty object. */
export const nullableObject = <Shape extends z.ZodRawShape>(shape: Shape) => {
  const object = z.strictObject(shape, { error: typePhrase("object", "null") });
  return object.nullable().transform((value) => value ?? object.parse({}));
};

/** A body of bare fields → the same inside the object that they belong in; anything else as it is. */
export function wrapped(body: unknown, name: string, fields: readonly string[]): unknown {
  if (typeof body !== "object" || body === null || Array.isArray(body)) return body;
  const keys = Object.keys(body);
  return keys.length > 0 && keys.every((key) => fields.includes(key)) ? { [name]: body } : body;
}

/** As `strict`, but properties that nobody knows are dropped. */
export const lenient = <Shape extends z.ZodRawShape>(shape: Shape) => z.object(shape, { error: typePhrase("object") });

export const text = () => bounded(z.string({ error: typePhrase("string") }));

const textOrNull = () => bounded(z.string({ error: typePhrase("string", "null") }));

/** What Python can decode as base64, of at least one character. */
export const base64Text = () =>
  z
    .string({ error: typePhrase("string") })
    .min(1, { error: "'' is too short" })
    .superRefine((value, context) => {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is what ASCII means
      const ascii = /^[\x00-\x7f]*$/.test(value);
      if (!ascii) context.addIssue({ code: "custom", message: undecodable, params: { whole: true } });
      else if (decodeBase64(value) === null) {
        context.addIssue({ code: "custom", message: `${pythonRepr(value)} is not a 'base64'` });
      }
    });

/** Missing and null are the same. */
export const optionalText = () =>
  textOrNull()
    .nullish()
    .transform((v) => v ?? null);

/** White space at both ends is removed (cinder-api 1.5). What is not sent stays undefined, apart from null. */
const stripped = (field: z.ZodString) => field.nullish().transform((v) => v?.trim() ?? v);

/** Names and descriptions; missing and null are the same. */
export const strippedText = () => changedText().transform((v) => v ?? null);

/** The same for a change: what is not sent is not changed. */
export const changedText = () => stripped(textOrNull());

/** Printable characters of the basic plane only (cinder-api 1.5): `u` makes a pair of surrogates one character. */
const unprintable = /[\p{C}\p{Zl}\p{Zp}\uffff\u{10000}-\u{10ffff}]/u;

export const printableText = () => changedPrintableText().transform((v) => v ?? null);

/** The same for a change: what is not sent is not changed. */
export const changedPrintableText = () =>
  stripped(
    textOrNull().refine((v) => !unprintable.test(v), {
      error: (i) => `${pythonRepr(i.input)} does not match the printable characters`,
    }),
  );

/** What Python's uuid module reads: 32 hex digits after `urn:`, `uuid:`, braces and dashes are taken away. */
export function uuidOf(value: string): string | null {
  const hex = value
    .replace(/urn:|uuid:/g, "")
    .replace(/^[{}]+|[{}]+$/g, "")
    .replaceAll("-", "")
    .toLowerCase();
  if (!/^[0-9a-f]{32}$/.test(hex)) return null;
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** What rows are looked up by: capitals do not matter. Other forms pass the check, but name nothing. */
const rowId = (value: string): string => (uuidOf(value) === value.toLowerCase() ? value.toLowerCase() : value);

/** A required id. */
export const uuid = () =>
  z
    .string({ error: typePhrase("string") })
    .meta({ format: "uuid" })
    .transform((value, context) => {
      if (uuidOf(value) === null) context.addIssue({ code: "custom", message: `${pythonRepr(value)} is not a 'uuid'` });
      return rowId(value);
    });

const noneOf = ({ input }: { input?: unknown }): string =>
  `${pythonRepr(input)} is not valid under any of the given schemas`;

/** An id, null or nothing. */
export const optionalUuid = () =>
  z
    .string({ error: noneOf })
    .meta({ format: "uuid" })
    .nullish()
    .transform((value, context) => {
      if (value == null) return null;
      if (uuidOf(value) === null) context.addIssue({ code: "custom", message: noneOf({ input: value }) });
      return rowId(value);
    });

const trueWords = ["True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t"];

const falseWords = ["False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"];

const booleanValues = `[${[true, ...trueWords, false, ...falseWords].map(pythonRepr).join(", ")}]`;

/** JSON booleans and the words that Cinder takes for them; null when it is not sent. */
export const optionalFlag = () =>
  z
    .union([z.boolean(), z.string()], { error: typePhrase("boolean", "string") })
    .optional()
    .transform((value, context) => {
      if (value === undefined) return null;
      if (typeof value === "boolean") return value;
      if (falseWords.includes(value)) return false;
      if (!trueWords.includes(value)) {
        context.addIssue({ code: "custom", message: `${pythonRepr(value)} is not one of ${booleanValues}` });
      }
      return true;
    });

/** As `optionalFlag`, false when it is not sent. */
export const flag = () => optionalFlag().transform((value) => value ?? false);

const metadataKey = /^[a-zA-Z0-9-_:. /]{1,255}$/;

const metadataValue = text();

/** Values are looked at where the key fits, then the keys that do not fit are named. */
const checkMetadata: z.core.CheckFn<Record<string, unknown>> = (context) => {
  const entries = Object.entries(context.value);
  for (const [key, value] of entries) {
    const problems = metadataKey.test(key) ? metadataValue.safeParse(value).error?.issues : undefined;
    for (const { message } of problems ?? []) {
      context.issues.push({ code: "custom", message, input: value, path: [key] });
    }
  }
  const wrong = entries.map(([key]) => key).filter((key) => !metadataKey.test(key));
  if (wrong.length === 0) return;
  const names = wrong.sort().map(pythonRepr).join(", ");
  const verb = wrong.length === 1 ? "does" : "do";
  context.issues.push({
    code: "custom",
    message: `${names} ${verb} not match any of the regexes: '${metadataKey.source}'`,
    input: context.value,
  });
};

const metadataRecord = (...types: string[]) =>
  z.record(z.string(), z.unknown(), { error: typePhrase(...types) }).check(checkMetadata) as unknown as z.ZodType<
    Record<string, string>
  >;

/** Keys and values of a user's own, null and nothing being the empty set. */
export const metadata = () =>
  metadataRecord("object", "null")
    .nullish()
    .transform((value) => ({ ...value }));

/** The same, not null. */
export const requiredMetadata = () => metadataRecord("object");

const statuses = ["available", "error"] as const;

/** What an admin may set a backup to, in any case. The text is Cinder's whole, not the validator's. */
export const backupStatus = () =>
  z.string({ error: typePhrase("string") }).transform((value, context) => {
    const status = statuses.find((known) => known === value.toLowerCase());
    if (status !== undefined) return status;
    const message = `Backup status: ${value} is invalid, valid statuses are: ${pythonRepr(statuses)}.`;
    context.addIssue({ code: "custom", message, params: { whole: true } });
    return z.NEVER;
  });
