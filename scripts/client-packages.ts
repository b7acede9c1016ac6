import { unpackPackages } from "./debian-packages.ts";

const packages = [
  "python3-openstackclient",
  "python3-cinderclient",
  "python3-openstacksdk",
  "python3-keystoneclient",
  "python3-pkg-resources",
];

/** OpenStack's own command lines and SDK from Debian's packages, see unpackPackages. */
export function unpackClients(say: (line: string) => void): Promise<Record<string, string>> {
  return unpackPackages({ name: "clients", packages }, say);
}
