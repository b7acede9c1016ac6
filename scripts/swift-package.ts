import { unpackPackages } from "./debian-packages.ts";

const packages = ["python3-swift", "python3-keystone", "python3-keystonemiddleware", "python3-pkg-resources"];

/** Debian's OpenStack Swift, and a Keystone whose tokens it can accept, see unpackPackages. */
export function unpackSwift(say: (line: string) => void): Promise<Record<string, string>> {
  return unpackPackages({ name: "swift-keystone", packages }, say);
}
