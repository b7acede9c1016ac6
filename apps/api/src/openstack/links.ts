/** The parts of a request's URL that responses repeat. `project` is the id in the URL, null when it had none. */
export interface Place {
  /** Scheme, host and prefix, without a trailing slash. */
  readonly origin: string;
  readonly project: string | null;
  /** Path below the project, such as `/backups/detail`. */
  readonly path: string;
}

const prefixOf = ({ project }: Place): string => (project === null ? "" : `/${project}`);

export function resourceLinks(place: Place, collection: string, id: string): { rel: string; href: string }[] {
  const path = `${prefixOf(place)}/${collection}/${id}`;
  return [
    { rel: "self", href: `${place.origin}/v3${path}` },
    { rel: "bookmark", href: `${place.origin}${path}` },
  ];
}

/** The next page: all parameters of the request, with `marker` replaced and moved to the end. */
export function nextLink(place: Place, query: URLSearchParams, marker: string): { rel: string; href: string } {
  const params = new URLSearchParams(query);
  params.delete("marker");
  params.append("marker", marker);
  // Python's URL encoding differs from the URL standard in two characters.
  const text = params.toString().replaceAll("%7E", "~").replaceAll("*", "%2A");
  return { rel: "next", href: `${place.origin}/v3${prefixOf(place)}${place.path}?${text}` };
}
