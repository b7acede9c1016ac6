import { unpackPackages } from "./debian-packages.ts";

const packages = ["python3-tempest", "python3-pkg-resources"];

/** OpenStack's acceptance tests from Debian's packages, see unpackPackages. */
export function unpackTempest(say: (line: string) => void): Promise<Record<string, string>> {
  return unpackPackages({ name: "tempest", packages }, say);
}
