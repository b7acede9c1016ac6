import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Fonts that a page may fall back to: those of the console are its own. */
const packages = ["chromium", "fonts-dejavu-core"] as const;

/** Debian's Chromium, unpacked (see unpackPackages) if it is not installed: its program, and the environment to run it in. */
export async function unpackChromium(
  say: (line: string) => void,
): Promise<{ command: string; env: Record<string, string> }> {
  const { LD_LIBRARY_PATH = "" } = await unpackPackages({ name: "chromium", packages }, say);
  // PulseAudio keeps a library in a folder of its own, which its others know when they are installed.
  const folders = LD_LIBRARY_PATH.split(":").flatMap((folder) => [folder, `${folder}/pulseaudio`]);
  const command = packageFile("chromium", "usr/lib/chromium/chromium");
  return { command, env: { LD_LIBRARY_PATH: folders.join(":") } };
}
