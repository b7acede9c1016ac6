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

/** Where the service says that it is: the configured endpoint, else where the request came in (API spec 3.4). */
export function baseOf(req: IncomingMessage, { public_endpoint: endpoint }: Pick<Config, "public_endpoint">): string {
  if (endpoint !== null) return endpoint.replace(/\/v\d+$/, "");
  return `http://${req.headers.host || `${req.socket.localAddress}:${req.socket.localPort}`}`;
}

/** What links begin with: as `baseOf`, but behind a proxy the last element of X-Forwarded-Host (API spec 1.7). */
export function originOf(req: IncomingMessage, config: Pick<Config, "public_endpoint">): string {
  const forwarded = req.headers["x-forwarded-host"];
  const last = (Array.isArray(forwarded) ? forwarded.join(",") : forwarded)?.split(",").at(-1)?.trim();
  return last && config.public_endpoint === null ? `http://${last}` : baseOf(req, config);
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
  // Python's encoding differs from the URL standard's in two characters.
  const text = params.toString().replaceAll("%7E", "~").replaceAll("*", "%2A");
  return { rel: "next", href: `${place.origin}/v3${prefixOf(place)}${place.path}?${text}` };
}
