import type { Client } from "./client.ts";

const uuid = /^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$/i;

/** The given name matches no resource, or more than one. */
export class NameError extends Error {
  readonly code: "not_found" | "ambiguous";

  constructor(code: "not_found" | "ambiguous", message: string) {
    super(message);
    this.code = code;
  }
}

export const isUuid = (text: string): boolean => uuid.test(text);

export type Kind = "volume" | "snapshot" | "backup";

/**
 * Resolves an id, or a name that exactly one resource of the project has.
 *
 * @throws NameError
 */
export async function resolveId(client: Client, kind: Kind, reference: string): Promise<string> {
  if (isUuid(reference)) return reference;
  const path = client.block(`/${kind}s?name=${encodeURIComponent(reference)}`);
  const rows = await client.listAll<{ id: string; name: string | null }>(path, `${kind}s`);
  return chooseByName(kind, reference, rows).id;
}

/**
 * The one row that has this id or name.
 *
 * @throws NameError
 */
export function chooseByName<Row extends { id: string; name: string | null }>(
  kind: string,
  reference: string,
  rows: readonly Row[],
): Row {
  const [found, ...more] = rows.filter((row) => row.id === reference || row.name === reference);
  if (found === undefined)
    throw new NameError("not_found", `No ${kind} has the id or name ${JSON.stringify(reference)}.`);
  if (more.length === 0) return found;
  const ids = [found, ...more].map((row) => row.id).join(", ");
  throw new NameError(
    "ambiguous",
    `${1 + more.length} ${kind}s have the name ${JSON.stringify(reference)}; give an id: ${ids}`,
  );
}
