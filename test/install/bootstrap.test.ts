import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, expect, inject, test } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";
import { spawnProgram } from "../../scripts/spawn-program.ts";

/** A checkout of one project, with the real compiler. */
let checkout: string;

beforeEach(() => {
  checkout = mkdtempSync(join(inject("servers").dir, "checkout-"));
  for (const path of ["scripts", "packages/one/src", "node_modules/@types"]) {
    mkdirSync(join(checkout, path), { recursive: true });
  }
  for (const name of ["bootstrap.mjs", "build-native.mjs", "bundle.mjs"]) {
    cpSync(join(root, "scripts", name), join(checkout, "scripts", name));
  }
  cpSync(join(root, "tsconfig.base.json"), join(checkout, "tsconfig.base.json"));
  cpSync(join(root, "packages/format/tsconfig.json"), join(checkout, "packages/one/tsconfig.json"));
  for (const name of ["typescript", "node", "@types/node"]) {
    symlinkSync(join(root, "node_modules", name), join(checkout, "node_modules", name));
  }
  writeFileSync(join(checkout, "package.json"), '{ "type": "module" }');
  writeFileSync(join(checkout, "package-lock.json"), "{}");
  writeSource("export const answer = 1;\n");
  return () => rmSync(checkout, { recursive: true });
});

function writeSource(text: string): void {
  writeFileSync(join(checkout, "packages/one/src/one.ts"), text);
}

/** Builds in a process of its own; returns what was said on the way. */
async function build(options = "{}"): Promise<{ code: number | null; said: string }> {
  const script = `
    import { ensureBuilt, orFail } from ${JSON.stringify(join(checkout, "scripts/bootstrap.mjs"))};
    await orFail(() => ensureBuilt(["packages/one"], ${options}));`;
  const args = ["--input-type=module", "--eval", script];
  const program = await spawnProgram({
    name: "build",
    command: projectNode(),
    args,
    env: { PATH: process.env["PATH"] },
  });
  const { code } = await program.exited;
  return { code, said: program.tail() };
}

const output = (): string => readFileSync(join(checkout, "packages/one/dist/one.js"), "utf8");

test("a build does nothing, and says nothing, until a source changes", async () => {
  expect((await build()).said).toBe("tephra: compiling packages/one");
  const compiled = statSync(join(checkout, "packages/one/dist/one.js")).mtimeMs;
  expect(await build()).toEqual({ code: 0, said: "" });
  expect(statSync(join(checkout, "packages/one/dist/one.js")).mtimeMs).toBe(compiled);
  writeSource("export const answer = 2;\n");
  await build();
  expect(output()).toContain("answer = 2");
});

test("two builds at once: one compiles, the other waits for it", async () => {
  const outcomes = await Promise.all([build(), build()]);
  expect(outcomes.map(({ code }) => code)).toEqual([0, 0]);
  expect(outcomes.map(({ said }) => said).sort()).toEqual(["", "tephra: compiling packages/one"]);
});

test("a lock whose holder is dead does not block", async () => {
  mkdirSync(join(checkout, "var"));
  writeFileSync(join(checkout, "var/bootstrap.lock"), "999999999");
  expect((await build()).code).toBe(0);
});

test("type errors fail a build, unless the caller only wants something to run", async () => {
  writeSource('export const answer: number = "four";\n');
  const strict = await build();
  expect(strict.code).toBe(1);
  expect(strict.said).toContain("one.ts(1,14): error TS2322");
  expect(strict.said).toContain("tephra: the sources do not compile");
  expect((await build('{ typeErrors: "warn" }')).code).toBe(0);
  expect(output()).toContain('answer = "four"');
});
