import { z } from "zod";
import { undecodable } from "../http/readable-url.ts";
import type { Microversion } from "./microversions.ts";
import { decodeBase64 } from "./python-base64.ts";
import { pythonRepr } from "./python-text.ts";

/** One schema per body and microversion range; each is built once. */
export const byVersion =
  <Schema>(versions: readonly [Microversion, Schema][]) =>
  (version: Microversion): Schema => {
    const found = versions.findLast(([from]) => version >= from) ?? versions[0];
    if (!found) throw new Error("a body needs at least one schema");
    return found[1];
  };

const Anything = z.unknown();

/** For actions with a body whose contents are ignored. */
export const anyBody = () => Anything;

/** Body fields, each with the messages of Cinder's validator (cinder-api 1.6, 1.7, 4.4). */

/** The validator's message for a value of the wrong type. */
export const typePhrase =
  (...types: string[]) =>
  ({ input }: { input?: unknown }): string =>
    `${pythonRepr(input)} is not of type ${types.map((t) => `'${t}'`).join(", ")}`;

/** Length in characters (code points), as Python counts them. */
export const lengthOf = (text: string): number => (text.length > 255 ? [...text].length : text.length);

/** PostgreSQL stores neither NUL nor lone surrogates. */
export const isStorable = (text: string): boolean => !text.includes("\0") && text.isWellFormed();

const bounded = (text: z.ZodString) =>
  text
    .refine((v) => lengthOf(v) <= 255, { error: (i) => `${pythonRepr(i.input)} is too long` })
    .refine(isStorable, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` })
    .meta({ maxLength: 255 });

/** An object whose fields must all be known and valid; anything else is rejected. */
export const strict = <Shape extends z.ZodRawShape>(shape: Shape) =>
  z.strictObject(shape, { error: typePhrase("object") });

/** Like `strict`; null is an empty object. */
export const nullableObject = <Shape extends z.ZodRawShape>(shape: Shape) => {
  const object = z.strictObject(shape, { error: typePhrase("object", "null") });
  return object.nullable().transform((value) => value ?? object.parse({}));
};

/** Wraps a body of bare fields in the object they belong to; anything else is unchanged. */
export function wrapped(body: unknown, name: string, fields: readonly string[]): unknown {
  if (typeof body !== "object" || body === null || Array.isArray(body)) return body;
  const keys = Object.keys(body);
  return keys.length > 0 && keys.every((key) => fields.includes(key)) ? { [name]: body } : body;
}

/** Like `strict`, but unknown properties are dropped. */
export const lenient = <Shape extends z.ZodRawShape>(shape: Shape) => z.object(shape, { error: typePhrase("object") });

export const text = () => bounded(z.string({ error: typePhrase("string") }));

const textOrNull = () => bounded(z.string({ error: typePhrase("string", "null") }));

/** Text that Python can decode as base64, of at least one character. */
export const base64Text = () =>
  z
    .string({ error: typePhrase("string") })
    .min(1, { error: "'' is too short" })
    .superRefine((value, context) => {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is ASCII by definition
      const ascii = /^[\x00-\x7f]*$/.test(value);
      if (!ascii) context.addIssue({ code: "custom", message: undecodable, params: { whole: true } });
      else if (decodeBase64(value) === null) {
        context.addIssue({ code: "custom", message: `${pythonRepr(value)} is not a 'base64'` });
      }
    });

/** Omitted and null are equivalent. */
export const optionalText = () =>
  textOrNull()
    .nullish()
    .transform((v) => v ?? null);

/** White space at both ends is removed (cinder-api 1.5). Omitted stays undefined, as distinct from null. */
const stripped = (field: z.ZodString) => field.nullish().transform((v) => v?.trim() ?? v);

/** Names and descriptions; omitted and null are equivalent. */
export const strippedText = () => changedText().transform((v) => v ?? null);

/** The same for an update: omitted means unchanged. */
export const changedText = () => stripped(textOrNull());

/** Only printable characters of the basic plane are allowed (cinder-api 1.5): `u` makes a surrogate pair one character. */
const unprintable = /[\p{C}\p{Zl}\p{Zp}\uffff\u{10000}-\u{10ffff}]/u;

export const printableText = () => changedPrintableText().transform((v) => v ?? null);

/** The same for an update: omitted means unchanged. */
export const changedPrintableText = () =>
  stripped(
    textOrNull().refine((v) => !unprintable.test(v), {
      error: (i) => `${pythonRepr(i.input)} does not match the printable characters`,
    }),
  );

/** What Python's uuid module accepts: 32 hex digits after removing `urn:`, `uuid:`, braces and dashes. */
export function uuidOf(value: string): string | null {
  const hex = value
    .replace(/urn:|uuid:/g, "")
    .replace(/^[{}]+|[{}]+$/g, "")
    .replaceAll("-", "")
    .toLowerCase();
  if (!/^[0-9a-f]{32}$/.test(hex)) return null;
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** The form used for row lookups: case-insensitive. Other accepted forms pass validation but match nothing. */
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

/** An id, null or omitted. */
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

/** JSON booleans and the words that Cinder accepts for them; null when omitted. */
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

/** Like `optionalFlag`, but false when omitted. */
export const flag = () => optionalFlag().transform((value) => value ?? false);

const metadataKey = /^[a-zA-Z0-9-_:. /]{1,255}$/;

const metadataValue = text();

/** Reports invalid values of valid keys first, then invalid keys. */
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

/** User-defined keys and values; null and omitted mean the empty set. */
export const metadata = () =>
  metadataRecord("object", "null")
    .nullish()
    .transform((value) => ({ ...value }));

/** The same, but not null. */
export const requiredMetadata = () => metadataRecord("object");

const statuses = ["available", "error"] as const;

/** Statuses that an admin may set a backup to, case-insensitive. The whole text is Cinder's, not the validator's. */
export const backupStatus = () =>
  z.string({ error: typePhrase("string") }).transform((value, context) => {
    const status = statuses.find((known) => known === value.toLowerCase());
    if (status !== undefined) return status;
    const message = `Backup status: ${value} is invalid, valid statuses are: ${pythonRepr(statuses)}.`;
    context.addIssue({ code: "custom", message, params: { whole: true } });
    return z.NEVER;
  });
