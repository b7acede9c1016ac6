import { answers } from "@tephra/wire";
import { expect } from "vitest";
import type { z } from "zod";

const routes = Object.entries(answers).map(([route, byStatus]) => {
  const [method, path = ""] = route.split(" ");
  const pattern = new RegExp(`^${path.replace(/:\w+/g, "[^/]+")}$`);
  return { route, method, pattern, byStatus: byStatus as Readonly<Record<string, z.ZodType | null>> };
});

/** Every JSON answer of our own routes is what `@tephra/wire` says, with no key beside. Faults have another form and other tests. */
export function checkWireAnswer(
  method: string,
  url: string,
  { status, body }: { status: number; body: unknown },
): void {
  const { pathname } = new URL(url);
  const found = routes.find((each) => each.method === method && each.pattern.test(pathname));
  if (found === undefined || (status >= 400 && found.byStatus[status] === undefined)) return;
  const what = `${found.route} → ${status}`;
  expect(Object.keys(found.byStatus), what).toContain(String(status));
  const schema = found.byStatus[status] ?? null;
  expect(schema === null ? undefined : schema.parse(body), what).toEqual(body);
}
