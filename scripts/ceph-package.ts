import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { packageFile, unpackPackages } from "./debian-packages.ts";

/** Debian's Ceph: a monitor, an OSD and their tools, see unpackPackages. */
export interface CephPrograms {
  /** What to set in the environment of a program that runs them. */
  environment: Record<string, string>;
  /** What the daemons load at run time. */
  folders: { plugins: string; erasureCodes: string; classes: string };
  /** The command `ceph`, for systemPython. */
  ceph: string;
}

/** @param path the PATH that theirs goes before */
export async function provideCeph(path: string, say: (line: string) => void): Promise<CephPrograms> {
  const name = "ceph";
  const packages = ["ceph-mon", "ceph-osd", "ceph-common", "python3-rbd"];
  const { LD_LIBRARY_PATH = "", PYTHONPATH = "" } = await unpackPackages({ name, packages }, say);
  const libraries = LD_LIBRARY_PATH.split(":").flatMap((folder) => [folder, join(folder, "ceph")]);
  const plugins = dirname(dirname(packageFile(name, "usr/lib/*-linux-gnu/ceph/erasure-code/libec_jerasure.so")));
  return {
    environment: {
      LD_LIBRARY_PATH: libraries.filter((folder) => existsSync(folder)).join(":"),
      PYTHONPATH,
      PATH: `${dirname(packageFile(name, "usr/bin/rbd"))}:${path}`,
    },
    folders: {
      plugins,
      erasureCodes: join(plugins, "erasure-code"),
      classes: dirname(packageFile(name, "usr/lib/*-linux-gnu/rados-classes/libcls_rbd.so")),
    },
    ceph: packageFile(name, "usr/bin/ceph"),
  };
}
