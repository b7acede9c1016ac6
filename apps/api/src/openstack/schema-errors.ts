import type { z } from "zod";
import { badRequest } from "../http/refusals.ts";
import { pythonRepr, pythonStr } from "./python-text.ts";

type Issue = z.core.$ZodIssue;

/** Values longer than this are cut in messages, so that a refusal is never larger than what it refuses. */
const valueLengthMax = 2_000;

const cut = (text: string): string => (text.length > valueLengthMax ? `${text.slice(0, valueLengthMax)}…` : text);

function valueAt(input: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => (value as Record<PropertyKey, unknown> | undefined)?.[key], input);
}

interface Violation {
  /** Path of the value that the phrase is about. */
  path: readonly PropertyKey[];
  phrase: string;
  /** Within one object the validator looks at values, then at what is missing, then at what is too much. */
  order: number;
  /** The phrase is the whole message. */
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

/** The object whose rule is broken. */
const ownerOf = (v: Violation): readonly PropertyKey[] => (v.order === 0 ? v.path.slice(0, -1) : v.path);

/** Whether the validator comes upon `a` on its way to `b`: what lies inside an object is looked at before the object's own rules. */
function precedes(a: Violation, b: Violation): boolean {
  const [inner, outer] = [ownerOf(a), ownerOf(b)];
  const within = outer.every((key, i) => inner[i] === key);
  return within && b.order > 0 && (inner.length > outer.length || a.order < b.order);
}

/** The first violation that Cinder's validator reports (cinder-api 4.4): fields in the order of the schema. */
export function schemaMessage(error: z.ZodError, input: unknown): string {
  const violations = error.issues.map((issue) => violationOf(issue, input));
  const first = violations.find((v) => !violations.some((other) => precedes(other, v)));
  if (!first) return "Malformed request body";
  const name = first.path.at(-1);
  if (name === undefined || first.whole) return cut(first.phrase);
  const value = cut(pythonStr(valueAt(input, first.path)));
  return `Invalid input for field/attribute ${String(name)}. Value: ${value}. ${cut(first.phrase)}`.toWellFormed();
}

/** @throws Refusal 400 in the validator's words */
export function parseBody<Body>(schema: z.ZodType<Body>, input: unknown): Body {
  const parsed = schema.safeParse(input);
  if (parsed.success) return parsed.data;
  throw badRequest(schemaMessage(parsed.error, input));
}
