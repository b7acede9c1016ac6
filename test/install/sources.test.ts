import { existsSync, globSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { mutations } from "../reliability/mutations/mutations.ts";

const sources = globSync("{packages,apps}/*/src/**/*.ts", { cwd: root }).filter(
  (path) => !path.includes("/generated/") && !path.endsWith(".test.ts"),
);
/** Sources of the product in which this stands. */
const having = (what: RegExp): string[] => sources.filter((path) => what.test(readFileSync(`${root}/${path}`, "utf8")));

test("the product starts programs without a shell, with arguments that are no text to be parsed", () => {
  const starting = having(/node:child_process/);
  expect(starting).toContain("packages/engine/src/encryption/master-keys.ts");
  for (const path of starting) {
    const text = readFileSync(`${root}/${path}`, "utf8");
    const imported = /import \{([^}]*)\} from "node:child_process"/.exec(text)?.[1]?.split(",") ?? [];
    for (const name of imported) expect(["execFile", "spawn"], path).toContain(name.trim());
    expect(text, path).not.toMatch(/\bshell\s*:/);
  }
});

test("the environment is read in one place, and no code is made of text", () => {
  const readers = having(/process\.env\b/).filter((path) => !path.startsWith("apps/cli/"));
  expect(readers).toEqual(["packages/control/src/config.ts"]);
  expect(having(/\beval\(|new Function\(|\$queryRawUnsafe|\$executeRawUnsafe/)).toEqual([]);
});

test.each(mutations)("the mutation is about what stands there: $name", ({ file, from, suite }) => {
  expect(readFileSync(`${root}/${file}`, "utf8").split(from)).toHaveLength(2);
  expect(existsSync(`${root}/${suite}`)).toBe(true);
});
