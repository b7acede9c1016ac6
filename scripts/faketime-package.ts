import { packageFile, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's libfaketime, unpacked (see unpackPackages) if it is not installed.
 *
 * @returns the environment of a program whose clock is off by `offset` (such as `+1h`); it still measures durations correctly
 */
export async function unpackFaketime(say: (line: string) => void): Promise<(offset: string) => Record<string, string>> {
  await unpackPackages({ name: "faketime", packages: ["libfaketime"] }, say);
  const library = packageFile("faketime", "usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1");
  return (offset) => ({
    LD_PRELOAD: library,
    FAKETIME: offset,
    FAKETIME_DONT_FAKE_MONOTONIC: "1",
    NO_FAKE_STAT: "1",
  });
}
