import { z } from "zod";
import { isStorable, optionalFlag, typePhrase } from "../../openstack/fields.ts";
import { pythonRepr } from "../../openstack/python-text.ts";

/** Fields used only in bodies for volumes and snapshots. */

/** An issue whose message is Cinder's own, without the validator's wording around it. */
const spoken = (message: string) => ({ code: "custom", message, params: { whole: true } }) as const;

/**
 * Names and descriptions of volumes: Cinder itself checks their length, after trimming white space. Omitted stays undefined, as distinct
 * from null.
 */
export const spokenText = (name: string) =>
  z
    .string({ error: typePhrase("string", "null") })
    .refine(isStorable, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` })
    .nullish()
    .transform((value, context) => {
      const text = value?.trim();
      const length = [...(text ?? "")].length;
      if (length > 255) {
        const message = `Invalid input received: ${name} has ${length} characters, more than 255.`;
        context.addIssue(spoken(message));
      }
      return text ?? value;
    });

interface Statuses {
  /** What Cinder calls them in its error message. */
  subject: string;
  words: readonly string[];
  /** How the message prints them. */
  shown: string;
}

function checkStatus(value: string, { subject, words, shown }: Statuses, context: z.core.$RefinementCtx): string {
  const status = value.toLowerCase();
  if (words.includes(status)) return status;
  context.addIssue(spoken(`${subject}: ${value} is invalid, valid statuses are: ${shown}.`));
  return z.NEVER;
}

/** One of a fixed set of statuses, case-insensitive. */
export const statusWord = (statuses: Statuses) =>
  z.string({ error: typePhrase("string") }).transform((value, context) => checkStatus(value, statuses, context));

/** The same; null or empty means unchanged. */
export const optionalStatusWord = (statuses: Statuses) =>
  z
    .string({ error: typePhrase("string", "null") })
    .nullish()
    .transform((value, context) => (value ? checkStatus(value, statuses, context) : null));

/** A field that must be present, whatever its own schema says. */
export const required = <Schema extends z.ZodType>(schema: Schema) =>
  z
    .custom<z.input<Schema>>((value) => value !== undefined)
    .pipe(schema as z.ZodType<z.output<Schema>, z.input<Schema>>);

/** A boolean for which Cinder's validator accepts null, but later code does not. */
export const multiattach = () =>
  z
    .unknown()
    .optional()
    .transform((value, context) => {
      const flag = optionalFlag().safeParse(value);
      if (value === null) {
        context.addIssue(spoken("Value 'None' for 'multiattach' is not a boolean."));
      } else if (!flag.success) {
        context.addIssue({
          code: "custom",
          message: `${pythonRepr(value)} is not valid under any of the given schemas`,
        });
      }
      return flag.data ?? null;
    });

export const requiredFlag = () => required(optionalFlag().transform((value) => value === true));

/** Between `min` and `max` characters. `types` are listed beside string in the validator's message. */
export const boundedText = (bounds: { min: number; max: number }, ...types: string[]) =>
  z
    .string({ error: typePhrase("string", ...types) })
    .refine((v) => v.length >= bounds.min, { error: (i) => `${pythonRepr(i.input)} is too short` })
    .refine((v) => [...v].length <= bounds.max, { error: (i) => `${pythonRepr(i.input)} is too long` })
    .refine(isStorable, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` });

const sizeMax = 2_147_483_647;

/** GiB, as an integer or a string of digits. */
export const volumeSize = (...types: string[]) =>
  z.union([z.int(), z.string()], { error: typePhrase("integer", "string", ...types) }).transform((value, context) => {
    const refuse = (message: string) => context.addIssue({ code: "custom", message });
    const size = Number(value);
    if (typeof value === "string" && !/^[0-9]+$/.test(value)) {
      refuse(`${pythonRepr(value)} does not match '^[0-9]+$'`);
    } else if (size < 1) {
      refuse(`${size} is less than the minimum of 1`);
    } else if (size > sizeMax) {
      refuse(`${size} is greater than the maximum of ${sizeMax}`);
    }
    return size;
  });

/** An object that must contain at least one of `names`. */
export const withOneOf =
  (names: readonly string[]) =>
  (value: object, context: z.core.$RefinementCtx): void => {
    const sent = Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined));
    if (names.some((name) => Object.hasOwn(sent, name))) return;
    context.addIssue({ code: "custom", message: `${pythonRepr(sent)} is not valid under any of the given schemas` });
  };
