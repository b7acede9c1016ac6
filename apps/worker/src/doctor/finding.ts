/** The result of one check of one subject. */
export interface Finding {
  /** For example `postgresql`, `repository main`. */
  subject: string;
  state: "ok" | "warning" | "failed";
  /** One sentence: what was found, in the words of whatever server refused. */
  found: string;
  /** What to do about it. */
  remedy?: string;
}

export const ok = (subject: string, found: string): Finding => ({ subject, state: "ok", found });
export const warning = (subject: string, found: string, remedy: string): Finding => ({
  subject,
  state: "warning",
  found,
  remedy,
});
export const failed = (subject: string, found: string, remedy: string): Finding => ({
  subject,
  state: "failed",
  found,
  remedy,
});

/** The first lines of an error and its causes, the deepest cause last. */
export function reasonOf(error: unknown): string {
  const said: string[] = [];
  for (let each: unknown = error; each instanceof Error && said.length < 5; each = each.cause) {
    const [line = ""] = (each.message || String((each as { code?: string }).code ?? each.name)).split("\n");
    if (!said.some((before) => before.includes(line))) said.push(line);
  }
  return said.length > 0 ? said.join(": ") : String(error);
}
