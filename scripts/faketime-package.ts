import { join } from "node:path";
import { unpackedFolder, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's libfaketime, see unpackPackages.
 *
 * @returns the environment of a program whose clock is wrong by `offset` (as `+1h`); how long things take it measures as ever
 */
export async function unpackFaketime(say: (line: string) => void): Promise<(offset: string) => Record<string, string>> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "faketime", packages: ["libfaketime"] }, say);
  const library = LD_LIBRARY_PATH.split(":")
    .filter((folder) => folder.startsWith(unpackedFolder("faketime")))
    .map((folder) => join(folder, "faketime/libfaketimeMT.so.1"));
  return (offset) => ({
    LD_PRELOAD: library.join(":"),
    FAKETIME: offset,
    FAKETIME_DONT_FAKE_MONOTONIC: "1",
    NO_FAKE_STAT: "1",
  });
}
