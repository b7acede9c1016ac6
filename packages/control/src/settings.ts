import { z } from "zod";

/**
 * Texts that may be shown to whoever sees all projects. Any other text may be a secret, or contain one, such as a URL with a password: a new setting
 * is hidden until its schema is registered here, as the last thing that is done to it.
 */
export const shown = z.registry();

export interface Setting {
  /** As in the configuration file, with the indices of lists: `repositories.0.compression`. */
  name: string;
  /** Null: nothing, or hidden. */
  value: string | number | boolean | (string | number | boolean)[] | null;
  /** Neither the file nor the environment has it. */
  isDefault: boolean;
  isHidden: boolean;
}

type Schema = z.core.$ZodType;

/** The schema without what says only when a value may be missing, and what becomes of it. */
function bare(schema: Schema): Schema {
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault) return bare(schema.def.innerType);
  if (schema instanceof z.ZodNullable || schema instanceof z.ZodOptional) return bare(schema.def.innerType);
  if (!(schema instanceof z.ZodPipe)) return schema;
  return bare(schema.def.out instanceof z.ZodTransform ? schema.def.in : schema.def.out);
}

/** The keys of a mapping that has this value, where its schema names them. */
function shapeFor(schema: Schema, value: unknown): Record<string, Schema> | null {
  if (schema instanceof z.ZodObject) return schema.shape;
  if (!(schema instanceof z.ZodDiscriminatedUnion)) return null;
  const variant = schema.options.find((option) => z.safeParse(option, value).success);
  return variant === undefined ? null : shapeFor(variant, value);
}

/** No number, switch or choice is a secret. */
const plain: ReadonlySet<string> = new Set(["number", "boolean", "enum", "literal"]);

function isShown(schema: Schema): boolean {
  if (schema instanceof z.ZodArray) return isShown(bare(schema.element));
  return plain.has(schema._zod.def.type) || shown.has(schema);
}

const inside = (given: unknown, key: string | number): unknown =>
  (given as Record<string | number, unknown> | null | undefined)?.[key];

/** Every setting of a configuration that its schema has parsed, without what may be secret. `given`: what the file and the environment have. */
export function settingsOf(schema: Schema, value: unknown, given: unknown, name = ""): Setting[] {
  const kind = bare(schema);
  const below = (inner: Schema, key: string | number) =>
    settingsOf(inner, inside(value, key), inside(given, key), name === "" ? String(key) : `${name}.${key}`);
  const shape = value === null || value === undefined ? null : shapeFor(kind, value);
  if (shape !== null) return Object.entries(shape).flatMap(([key, inner]) => below(inner, key));
  if (kind instanceof z.ZodArray && Array.isArray(value)) {
    const element = bare(kind.element);
    if (value.some((item) => shapeFor(element, item) !== null)) return value.flatMap((_, at) => below(element, at));
  }
  const isNothing =
    value === null || value === undefined || (typeof value === "object" && Object.keys(value).length === 0);
  const isHidden = !isNothing && !isShown(kind);
  const told = isNothing || isHidden ? null : (value as Setting["value"]);
  return [{ name, value: told, isDefault: given === undefined, isHidden }];
}
