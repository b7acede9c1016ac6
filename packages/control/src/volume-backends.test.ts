import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  backendFolder,
  devicePath,
  imageRoots,
  isOneFile,
  protocolOf,
  provisions,
  snapshotsTogether,
  VolumeBackend,
} from "./volume-backends.ts";

const root = join(import.meta.dirname, "../../..");
const drivers = VolumeBackend.options.flatMap((option) => [...option.shape.driver.values]);

/** Program sources, by their paths from the root. */
function sources(): string[] {
  const folders = ["packages", "apps"].flatMap((kind) =>
    readdirSync(join(root, kind)).map((name) => join(kind, name, "src")),
  );
  return [...folders, "scripts"].flatMap((folder) =>
    (readdirSync(join(root, folder), { recursive: true }) as string[])
      .filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"))
      .map((name) => join(folder, name)),
  );
}

describe("drivers of volume backends", () => {
  it("are told apart by their capabilities: no code but a driver's own compares its name", () => {
    const names = drivers.join("|");
    const compared = new RegExp(`driver.*(?:[!=]==?|\\bcase)\\s*"(?:${names})"|"(?:${names})"\\s*[!=]==?.*driver`);
    const own = new RegExp(`^packages/engine/src/volume/(?:${names})/`);
    const files = sources();
    expect(files.length).toBeGreaterThan(200);
    const found = files
      .filter((path) => !own.test(path))
      .flatMap((path) => {
        const text = readFileSync(join(root, path), "utf8");
        const lines = text.split("\n").filter((line) => compared.test(line));
        const isSwitch = /switch \([^)]*driver\)/.test(text) && new RegExp(`case "(?:${names})"`).test(text);
        return [...lines, ...(isSwitch ? ["switch"] : [])].map((line) => `${path}: ${line.trim()}`);
      });
    expect(found).toEqual([]);
  });

  it("say where their folder and a volume's raw bytes are", () => {
    const files = VolumeBackend.parse({ name: "files", driver: "file", path: "/srv/volumes" });
    expect([backendFolder(files), devicePath(files, "id")]).toEqual(["/srv/volumes", "/srv/volumes/volume-id"]);
  });

  it("say where images may be that a volume builds on, and that a device is no image", () => {
    const own = { path: "/srv/x", roots: ["/images"] };
    const all = [
      VolumeBackend.parse({ name: "files", driver: "file", path: "/srv/volumes" }),
      VolumeBackend.parse({ name: "images", driver: "qemu", ...own }),
      VolumeBackend.parse({ name: "devices", driver: "device", ...own }),
    ];
    expect(imageRoots(all)).toEqual(["/srv/x", "/images"]);
    expect(["files", "images", "devices", "none"].map((name) => isOneFile(all, name))).toEqual([
      true,
      true,
      false,
      false,
    ]);
  });

  it("tell no path where the files are images", () => {
    const images = VolumeBackend.parse({
      name: "images",
      driver: "qemu",
      path: "/srv/images",
      roots: ["/var/lib/libvirt"],
    });
    expect([backendFolder(images), devicePath(images, "id")]).toEqual(["/srv/images", null]);
  });

  it("say where volumes and snapshots can be made", () => {
    const disks = VolumeBackend.parse({ name: "disks", driver: "device", path: "/srv/records", roots: ["/dev/vg"] });
    expect([backendFolder(disks), devicePath(disks, "id")]).toEqual(["/srv/records", null]);
    expect([protocolOf(disks), provisions(disks), snapshotsTogether(disks)]).toEqual(["block", false, "never"]);
    const files = VolumeBackend.parse({ name: "files", driver: "file", path: "/srv/volumes" });
    expect([protocolOf(files), provisions(files), snapshotsTogether(files)]).toEqual(["file", true, "copies"]);
  });

  it("tell no path where there are no files", () => {
    const pool = VolumeBackend.parse({ name: "ceph", driver: "rbd", pool: "volumes", namespace: "a", user: "tephra" });
    expect([backendFolder(pool), devicePath(pool, "id")]).toEqual([null, null]);
  });

  it("each take their own settings only", () => {
    for (const settings of [
      { name: "files", driver: "none", path: "/srv" },
      { name: "files", driver: "file", path: "/srv", pool: "volumes" },
      { name: "files", driver: "file" },
      { name: "images", driver: "qemu", path: "/srv", roots: ["relative"] },
      { name: "disks", driver: "device", path: "/srv", roots: [] },
      { name: "ceph", driver: "rbd" },
      { name: "ceph", driver: "rbd", pool: "volumes/inner" },
      { name: "ceph", driver: "rbd", pool: "volumes", user: "tephra --conf=x" },
      { name: "ceph", driver: "rbd", pool: "volumes", key: "AQ==" },
    ]) {
      expect(VolumeBackend.safeParse(settings).success, JSON.stringify(settings)).toBe(false);
    }
  });
});
