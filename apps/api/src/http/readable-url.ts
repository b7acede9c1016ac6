import type { RequestHandler } from "express";
import { badRequest } from "./refusals.ts";

declare module "express-serve-static-core" {
  interface Request {
    /** Whether the percent-decoded URL is valid UTF-8. */
    isReadable: boolean;
  }
}

/** Cinder's message for text that is not UTF-8. */
export const undecodable =
  "Error decoding your request. Either the URL or the request body contained characters that could not be decoded by Cinder.";

/** A `%` that starts no escape stands for itself, as in Python. */
const asEscaped = (text: string): string =>
  text
    .replace(/%(?![0-9a-f]{2})/gi, "%25")
    // Bytes that were sent unescaped.
    .replace(/[\x80-\xff]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase()}`);

function isDecodable(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}

/**
 * Rewrites the request's URL so that every parser can decode it, and records whether it was valid: routing and authentication proceed,
 * and then the request is refused (`refuseUnreadable`).
 */
export const makeReadable: RequestHandler = (req, _res, next) => {
  const [path = "", ...query] = req.url.split("?").map(asEscaped);
  const whole = [path, ...query].join("?");
  req.isReadable = isDecodable(whole);
  req.url = req.isReadable ? whole : path.replace(/%[89a-f][0-9a-f]/gi, "%3F");
  next();
};

/** @throws Refusal 400 */
export function refuseUnreadable({ isReadable }: { isReadable: boolean }): void {
  if (!isReadable) throw badRequest(undecodable);
}
