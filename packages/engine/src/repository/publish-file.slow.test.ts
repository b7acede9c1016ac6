import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Publishing, probePublishing, publishFile } from "./publish-file.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tephra-publish-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

async function newFile(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

test("a probe finds hard links where there are some, and leaves nothing behind", async () => {
  expect(await probePublishing(folder)).toBe("link");
  expect(await readdir(folder)).toEqual([]);
});

describe.each(["link", "rename", "claim"] satisfies Publishing[])("a name that is given by %s", (way) => {
  test("goes to exactly one of many that want it at once, and what they see there is always whole", async () => {
    const path = join(folder, "object");
    const files = await Promise.all(Array.from({ length: 20 }, (_, index) => newFile(`${index}`, `bytes of ${index}`)));
    const outcomes = await Promise.all(files.map((file) => publishFile(way, file, path)));
    expect(outcomes.filter((outcome) => outcome === "stored")).toHaveLength(1);
    expect(await readFile(path, "utf8")).toBe(`bytes of ${outcomes.indexOf("stored")}`);
  });

  test("is kept by what has it, also by what is empty as the new one is", async () => {
    const path = await newFile("object", "old");
    expect(await publishFile(way, await newFile("new", "new"), path)).toBe("taken");
    expect(await readFile(path, "utf8")).toBe("old");
    const empty = await newFile("empty", "");
    expect(await publishFile(way, await newFile("also", ""), empty)).toBe("taken");
  });
});

test("a name that a dead writer has claimed goes to the next one, after a while", async () => {
  const path = await newFile("object", "");
  const begun = performance.now();
  expect(await publishFile("claim", await newFile("new", "new"), path)).toBe("stored");
  expect(performance.now() - begun).toBeGreaterThan(4_000);
  expect(await readFile(path, "utf8")).toBe("new");
  expect((await stat(path)).size).toBe(3);
});
