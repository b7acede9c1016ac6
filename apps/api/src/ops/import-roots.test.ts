import { join, resolve, sep } from "node:path";
import fc from "fast-check";
import { expect, it } from "vitest";
import { beneathRoots } from "./import-roots.ts";

const config = { import_roots: ["/data/in", "/srv"] };
const own = ["/srv/data", "/data/in/b.img"];
const part = fc.constantFrom("a", "b.img", "..", ".", "in", "...", "..a", "data", "srv", "");

it("takes a path only when what it resolves to lies beneath a configured folder and in nothing of the service's", () => {
  fc.assert(
    fc.property(fc.constantFrom("/", "/data/in/", "/srv/", ""), fc.array(part, { maxLength: 6 }), (start, parts) => {
      const path = start + parts.join("/");
      const clean = resolve("/", path);
      const inside = config.import_roots.some((root) => clean.startsWith(root + sep));
      const used = own.some((place) => clean === place || clean.startsWith(place + sep));
      const allowed = inside && !used && path.startsWith("/") && !path.endsWith("/");
      if (allowed) expect(beneathRoots(config, own, path)).toBe(clean);
      else expect(() => beneathRoots(config, own, path)).toThrow(expect.objectContaining({ status: 400 }));
    }),
  );
});

it("takes nothing when no folder is configured, and no NUL anywhere", () => {
  expect(() => beneathRoots({ import_roots: [] }, [], "/data/in/a")).toThrow("import_roots");
  expect(() => beneathRoots(config, own, join("/srv", "a\0"))).toThrow("NUL");
});
