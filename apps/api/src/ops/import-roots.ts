import { isAbsolute, relative, resolve, sep } from "node:path";
import { type Config, isOwnPlace } from "@tephra/control";
import { badRequest } from "../http/refusals.ts";

/**
 * Normalizes a user's path and checks, as text, that it is beneath one of the configured folders and not within `own`, the service's own
 * places. Links are handled by the worker, which opens the file, follows none and checks its real location.
 *
 * @throws Refusal 400
 */
export function beneathRoots(config: Pick<Config, "import_roots">, own: readonly string[], path: string): string {
  if (path.includes("\0")) throw badRequest("Invalid input received: path must not contain a NUL character");
  if (!isAbsolute(path)) throw badRequest("Invalid input received: path must be absolute");
  const clean = resolve(path);
  const inside = config.import_roots.some((root) => {
    const rest = relative(resolve(root), clean);
    return rest !== "" && rest !== ".." && !rest.startsWith(`..${sep}`) && !isAbsolute(rest);
  });
  if (!inside || path.endsWith(sep)) {
    throw badRequest(`Invalid input received: path ${clean} must be a file within one of import_roots`);
  }
  if (isOwnPlace(clean, own)) {
    throw badRequest(`Invalid input received: path ${clean} is used by the service itself`);
  }
  return clean;
}
