import { execFile } from "node:child_process";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { root } from "./bootstrap.mjs";
import { packageFile, unpackPackages } from "./debian-packages.ts";

const name = "gophercloud";
const packages = ["golang-go", "golang-github-gophercloud-gophercloud-dev"];
const library = "usr/share/gocode/src/github.com/gophercloud/gophercloud";
const execute = promisify(execFile);

/** gophercloud's own tests, and a compiler for them. */
export interface Gophercloud {
  /** Compiles the tests of a package below `acceptance`, overlaid with files of ours (name → path), to a program at `to`. */
  compile(
    path: string,
    options: { to: string; added: Readonly<Record<string, string>>; scratch: string },
  ): Promise<void>;
}

/** Debian's Go and gophercloud, see unpackPackages. Compiled programs are cached beside them. */
export async function provideGophercloud(
  say: (line: string) => void,
  writeFile: (path: string, text: string) => Promise<void>,
): Promise<Gophercloud> {
  await unpackPackages({ name, packages }, say);
  const go = packageFile(name, "usr/lib/go-1.*/bin/go");
  const sources = packageFile(name, library);
  const env = {
    PATH: process.env["PATH"],
    HOME: process.env["HOME"],
    GOROOT: dirname(dirname(go)),
    GOPATH: [
      ...new Set([sources.slice(0, -"/src/github.com/gophercloud/gophercloud".length), "/usr/share/gocode"]),
    ].join(":"),
    GOCACHE: join(resolve(process.env["TEPHRA_CACHE_DIR"] ?? join(root, "var")), "go-build"),
    GO111MODULE: "off",
    CGO_ENABLED: "0",
  };
  return {
    compile: async (path, { to, added, scratch }) => {
      const folder = join(sources, "acceptance", path);
      const overlay = join(scratch, "overlay.json");
      const replaced = Object.entries(added).map(([file, ours]) => [join(folder, file), ours]);
      await writeFile(overlay, JSON.stringify({ Replace: Object.fromEntries(replaced) }));
      // vet does not support overlays.
      const args = ["test", "-c", "-vet=off", "-tags", "acceptance", "-overlay", overlay, "-o", to, "."];
      await execute(go, args, { cwd: folder, env, timeout: 900_000, maxBuffer: 2 ** 24 });
    },
  };
}
