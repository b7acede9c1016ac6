import type { Route } from "./call.ts";
import { BareStatus } from "./faults.ts";

/** Routes with the segments of their paths; those that start with `:` are variable. */
export type RouteTable = readonly { route: Route; pattern: readonly string[] }[];

export const routeTable = (routes: readonly Route[]): RouteTable =>
  routes.map((route) => ({ route, pattern: route[1].split("/").filter(Boolean) }));

/** The variable segments by name; null where the path is another. */
function matchPath(pattern: readonly string[], segments: readonly string[]): Record<string, string> | null {
  if (pattern.length !== segments.length) return null;
  const params: Record<string, string> = {};
  for (const [at, part] of pattern.entries()) {
    const segment = segments[at] ?? "";
    if (part.startsWith(":")) params[part.slice(1)] = segment;
    else if (part !== segment) return null;
  }
  return params;
}

/** HEAD is answered from GET. @throws BareStatus 404 for an unknown path, 405 for a method that it does not have */
export function matchRoute(
  table: RouteTable,
  method: string,
  segments: readonly string[],
): { route: Route; params: Record<string, string> } {
  const allowed = new Set<string>();
  for (const { route, pattern } of table) {
    const params = matchPath(pattern, segments);
    if (!params) continue;
    const verb = route[0] === "ACTION" ? "POST" : route[0];
    if (verb === method || (verb === "GET" && method === "HEAD")) return { route, params };
    allowed.add(verb);
    if (verb === "GET") allowed.add("HEAD");
  }
  if (allowed.size === 0) throw new BareStatus(404);
  throw new BareStatus(405, { allow: [...allowed].join(", ") });
}
