import { unpackPackages } from "./debian-packages.ts";

const packages = ["python3-swift", "python3-pkg-resources"];

/** Debian's OpenStack Swift, see unpackPackages. */
export function unpackSwift(say: (line: string) => void): Promise<Record<string, string>> {
  return unpackPackages({ name: "swift", packages }, say);
}
