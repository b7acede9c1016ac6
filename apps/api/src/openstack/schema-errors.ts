import type { z } from "zod";
import { badRequest } from "../http/refusals.ts";
import { pythonRepr, pythonStr } from "./python-text.ts";

type Issue = z.core.$ZodIssue;

/** Longer values are truncated in messages, so that an error is never larger than the request. */
const valueLengthMax = 2_000;

const cut = (text: string): string => (text.length > valueLengthMax ? `${text.slice(0, valueLengthMax)}…` : text);

function valueAt(input: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], input);
}

interface Violation {
  /** Path of the offending value. */
  path: readonly PropertyKey[];
  phrase: string;
  /** Within one object the validator checks values first, then missing keys, then surplus keys. */
  order: number;
  /** Whether the phrase is the whole message. */
  whole?: boolean;
}

function violationOf(issue: Issue, input: unknown): Violation {
  const parent = issue.path.slice(0, -1);
  const last = issue.path.at(-1);
  if (issue.code === "unrecognized_keys") {
    const names = [...issue.keys].sort().map(pythonRepr).join(", ");
    const phrase = `Additional properties are not allowed (${names} ${issue.keys.length === 1 ? "was" : "were"} unexpected)`;
    return { path: issue.path, phrase, order: 2 };
  }
  const missing = last !== undefined && !Object.hasOwn((valueAt(input, parent) ?? {}) as object, last);
  if (missing) return { path: parent, phrase: `${pythonRepr(last)} is a required property`, order: 1 };
  const whole = issue.code === "custom" && issue.params?.["whole"] === true;
  return { path: issue.path, phrase: issue.message, order: 0, whole };
}

/** The object whose rule is violated. */
const ownerOf = (v: Violation): readonly PropertyKey[] => (v.order === 0 ? v.path.slice(0, -1) : v.path);

/** Whether the validator meets `a` before `b` on its way: an object's contents are checked before the object's own rules. */
function precedes(a: Violation, b: Violation): boolean {
  const [inner, outer] = [ownerOf(a), ownerOf(b)];
  const within = outer.every((key, i) => inner[i] === key);
  return within && b.order > 0 && (inner.length > outer.length || a.order < b.order);
}

/** The violation that Cinder's validator would report first (cinder-api 4.4): fields in schema order. */
export function schemaMessage(error: z.ZodError, input: unknown): string {
  const violations = error.issues.map((issue) => violationOf(issue, input));
  const first = violations.find((v) => !violations.some((other) => precedes(other, v)));
  if (!first) return "Malformed request body";
  const name = first.path.at(-1);
  if (name === undefined || first.whole) return cut(first.phrase);
  const value = cut(pythonStr(valueAt(input, first.path)));
  return `Invalid input for field/attribute ${String(name)}. Value: ${value}. ${cut(first.phrase)}`.toWellFormed();
}

/** @throws Refusal 400 with the validator's message */
export function parseBody<Body>(schema: z.ZodType<Body>, input: unknown): Body {
  const parsed = schema.safeParse(input);
  if (parsed.success) return parsed.data;
  throw badRequest(schemaMessage(parsed.error, input));
}
