import { globSync } from "node:fs";
import { join } from "node:path";
import { unpackedFolder, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's libfaketime, unpacked (see unpackPackages) where it is not installed.
 *
 * @returns the environment of a program whose clock is wrong by `offset` (as `+1h`); how long things take it measures as ever
 */
export async function unpackFaketime(say: (line: string) => void): Promise<(offset: string) => Record<string, string>> {
  await unpackPackages({ name: "faketime", packages: ["libfaketime"] }, say);
  const places = [unpackedFolder("faketime"), "/"];
  const [library] = globSync(places.map((place) => join(place, "usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1")));
  if (library === undefined) throw new Error("Debian's package libfaketime has no library where it is looked for");
  return (offset) => ({
    LD_PRELOAD: library,
    FAKETIME: offset,
    FAKETIME_DONT_FAKE_MONOTONIC: "1",
    NO_FAKE_STAT: "1",
  });
}
