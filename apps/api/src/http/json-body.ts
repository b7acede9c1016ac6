import type { Request } from "express";
import { badRequest, Refusal } from "./refusals.ts";

const contentTypes = ["application/json", "application/vnd.openstack.volume+json"];
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Maximum nesting of arrays and objects. Code that walks a value may recurse this deep; no legitimate request needs a tenth of it. */
const depthMax = 100;

/** Whether brackets outside of strings are nested more deeply than that. Does not validate the JSON. */
function isTooDeep(json: string): boolean {
  let depth = 0;
  let inText = false;
  for (let at = 0; at < json.length; at += 1) {
    const letter = json[at];
    if (inText) {
      if (letter === "\\") at += 1;
      else if (letter === '"') inText = false;
    } else if (letter === '"') inText = true;
    else if (letter === "[" || letter === "{") depth += 1;
    else if (letter === "]" || letter === "}") depth -= 1;
    if (depth > depthMax) return true;
  }
  return false;
}

export const malformedBody = (): Refusal => badRequest("Malformed request body");

/**
 * The body that a raw-body parser has stored in `req.body`; null where there is none. A form on another site can send neither of the
 * accepted content types.
 *
 * @throws Refusal 415 for a body whose content type is not JSON
 */
export function bodyText(req: Request): Buffer | null {
  if (!Buffer.isBuffer(req.body) || req.body.length === 0) return null;
  const type = req.get("content-type")?.split(";")[0]?.trim() ?? "";
  if (!contentTypes.includes(type)) throw new Refusal(415, "Unsupported Content-Type");
  return req.body;
}

/** @throws Refusal 400 for invalid JSON, invalid UTF-8 or too deep nesting */
export function parseJson(body: Buffer): unknown {
  try {
    const text = utf8.decode(body);
    if (!isTooDeep(text)) return JSON.parse(text);
  } catch {
    // Rejected below, like too deep nesting.
  }
  throw malformedBody();
}
