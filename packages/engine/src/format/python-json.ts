/** Values used in repository documents. */
export type JsonValue = string | number | boolean | null | JsonValue[] | { [key: string]: JsonValue };

/** A string as Python's `json.dumps` writes it: ASCII only, everything outside space to tilde escaped with \uXXXX. */
export function pythonString(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** One line of JSON with Python's default separators (`, ` and `: `), keys in the order given. Numbers must be integers. */
export function pythonJson(value: JsonValue): string {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return pythonString(value);
  if (typeof value === "number") return String(value);
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  return `{${Object.entries(value)
    .map(([key, entry]) => `${pythonString(key)}: ${pythonJson(entry)}`)
    .join(", ")}}`;
}
