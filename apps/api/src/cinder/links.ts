import type { IncomingMessage } from "node:http";
import type { Config } from "@tephra/control";

/** Where a request came in, as far as answers repeat it. `project` is the id in the URL, null when it had none. */
export interface Place {
  /** Scheme and host, with no slash at the end. */
  readonly origin: string;
  readonly project: string | null;
  /** Path below the project, such as `/backups/detail`. */
  readonly path: string;
}

/**
 * What links begin with: the configured endpoint, else scheme and host as the client sees them, behind a proxy the last element of
 * X-Forwarded-Host (API spec 1.7).
 */
export function originOf(req: IncomingMessage, { public_endpoint: endpoint }: Pick<Config, "public_endpoint">): string {
  if (endpoint !== null) return endpoint.replace(/\/v\d+$/, "");
  const forwarded = req.headers["x-forwarded-host"];
  const last = (Array.isArray(forwarded) ? forwarded.join(",") : forwarded)?.split(",").at(-1)?.trim();
  return `http://${last || req.headers.host || `${req.socket.localAddress}:${req.socket.localPort}`}`;
}

const prefixOf = ({ project }: Place): string => (project === null ? "" : `/${project}`);

export function resourceLinks(place: Place, collection: string, id: string): { rel: string; href: string }[] {
  const path = `${prefixOf(place)}/${collection}/${id}`;
  return [
    { rel: "self", href: `${place.origin}/v3${path}` },
    { rel: "bookmark", href: `${place.origin}${path}` },
  ];
}

/** The next page: every parameter of the request again, with `marker` replaced and last. */
export function nextLink(place: Place, query: URLSearchParams, marker: string): { rel: string; href: string } {
  const params = new URLSearchParams(query);
  params.delete("marker");
  params.append("marker", marker);
  return { rel: "next", href: `${place.origin}/v3${prefixOf(place)}${place.path}?${params}` };
}
