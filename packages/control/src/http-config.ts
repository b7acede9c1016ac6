import { isIP } from "node:net";
import { z } from "zod";
import { shown } from "./settings.ts";

/** Whether a text is an address, or a network as ADDRESS/BITS. */
function isNetwork(text: string): boolean {
  const [address = "", bits, ...more] = text.split("/");
  const family = isIP(address);
  if (family === 0 || more.length > 0) return false;
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 6 ? 128 : 32));
}

/** `https://dashboard.example`, as browsers write it in `Origin`: no path, no trailing slash, lower case. */
function isOrigin(text: string): boolean {
  return /^https?:/.test(text) && URL.canParse(text) && new URL(text).origin === text;
}

/** Proxies in front of the API, and the browser origins that may call it. */
export const httpFields = {
  /** Addresses and networks whose `X-Forwarded-Proto`, `-Host`, `-Port` and `-Prefix` are trusted. */
  trust_proxy: z
    .array(z.string().refine(isNetwork, "must be an IP address or a network such as 10.0.0.0/8").register(shown))
    .default([]),
  /** Additional host names that requests may use, without a port. If not empty: no others, apart from loopback and `public_endpoint`. */
  allowed_hosts: z
    .array(
      z
        .string()
        .regex(/^[a-z0-9.-]{1,253}$|^[0-9a-f:.]+$/, "must be a lower-case host name")
        .register(shown),
    )
    .default([]),
  cors: z
    .strictObject({
      /** Origins whose pages may call the API from a browser. */
      allowed_origins: z
        .array(z.string().refine(isOrigin, "must be an origin such as https://dashboard.example").register(shown))
        .default([]),
      /** How long browsers may cache the answer to a preflight request. */
      max_age_seconds: z.int().min(0).default(3600),
    })
    .prefault({}),
};
