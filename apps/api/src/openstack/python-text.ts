/** Prints a JSON value like Python's repr: Cinder's validator quotes values that way, and clients show its messages. */
export function pythonRepr(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return quoted(value);
  if (Array.isArray(value)) return `[${value.map(pythonRepr).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([key, entry]) => `${quoted(key)}: ${pythonRepr(entry)}`)
      .join(", ")}}`;
  }
  return String(value);
}

/** Like `str()`: a string is unchanged, everything else is its repr. */
export const pythonStr = (value: unknown): string => (typeof value === "string" ? value : pythonRepr(value));

const escapes: Readonly<Record<string, string>> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\\p{C}\p{Zl}\p{Zp}]/gu, (char) => {
    const code = char.codePointAt(0) ?? 0;
    if (escapes[char] !== undefined) return escapes[char];
    if (code <= 0xff) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code <= 0xffff ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

/** Parses a Python dictionary of strings, or the same in JSON, as clients send it in a query; null for anything else. */
export function parsePythonDict(text: string): Record<string, string> | null {
  const pair =
    /\s*u?(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*:\s*u?(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")\s*(?:,|$)/y;
  const [, inner] = /^\s*\{(.*)\}\s*$/s.exec(text) ?? [];
  if (inner === undefined) return null;
  const entries: [string, string][] = [];
  const plain = (quoted: string | undefined): string => (quoted ?? "").replace(/\\(.)/g, "$1");
  while (pair.lastIndex < inner.trimEnd().length) {
    const found = pair.exec(inner);
    if (!found) return null;
    entries.push([plain(found[1] ?? found[2]), plain(found[3] ?? found[4])]);
  }
  return Object.fromEntries(entries);
}
