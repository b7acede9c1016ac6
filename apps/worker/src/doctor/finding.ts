/** What one check saw of one thing. */
export interface Finding {
  /** As `postgresql`, `repository main`. */
  subject: string;
  state: "ok" | "warning" | "failed";
  /** One sentence: what was seen, in the words of whoever refused. */
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

/** The first line of what an error and its causes say, the deepest cause last. */
export function reasonOf(error: unknown): string {
  const said: string[] = [];
  for (let each: unknown = error; each instanceof Error && said.length < 5; each = each.cause) {
    const [line = ""] = (each.message || String((each as { code?: string }).code ?? each.name)).split("\n");
    if (!said.some((before) => before.includes(line))) said.push(line);
  }
  return said.length > 0 ? said.join(": ") : String(error);
}
