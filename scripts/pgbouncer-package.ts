import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's PgBouncer, unpacked (see unpackPackages) if it is not installed. */
export async function unpackPgbouncer(
  say: (line: string) => void,
): Promise<{ command: string; env: Record<string, string> }> {
  const env = await unpackPackages({ name: "pgbouncer", packages: ["pgbouncer"] }, say);
  return { command: packageFile("pgbouncer", "usr/sbin/pgbouncer"), env };
}
