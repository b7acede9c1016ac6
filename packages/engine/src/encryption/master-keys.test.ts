import { randomBytes } from "node:crypto";
import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { RepositoryConfigError, RepositoryUnavailableError } from "../errors.ts";
import { newDataKey, unwrapDataKey, wrapDataKey } from "./data-key.ts";
import { parseMasterKeys, readMasterKeys } from "./master-keys.ts";

const one = randomBytes(32);
const two = randomBytes(32);
const text = `# keys of the store\n1:${one.toString("base64")}\n\n2026.b:${two.toString("base64")}\r\n`;

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-keys-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

async function keyFile(contents: string, mode = 0o600): Promise<string> {
  const path = join(home, "keys");
  await writeFile(path, contents);
  await chmod(path, mode);
  return path;
}

test("the last line of a list of keys is current, and the others open what is older", () => {
  expect(parseMasterKeys(text, "It")).toEqual([
    { version: "2026.b", secret: two },
    { version: "1", secret: one },
  ]);
});

test.each([
  { what: "nothing", list: "# no key\n" },
  { what: "a key without a version", list: one.toString("base64") },
  { what: "a key that is too short", list: `1:${randomBytes(16).toString("base64")}` },
  { what: "a key in hex", list: `1:${one.toString("hex")}` },
  { what: "a version that is no part of a name", list: `a_b:${one.toString("base64")}` },
  { what: "a version twice", list: `${text}\n1:${one.toString("base64")}` },
])("a list with $what is refused without a word of it", ({ list }) => {
  let message = "";
  try {
    parseMasterKeys(list, "The list");
  } catch (error) {
    expect(error).toBeInstanceOf(RepositoryConfigError);
    message = (error as Error).message;
  }
  expect(message).toMatch(/^The list/);
  for (const secret of [one.toString("base64"), one.toString("hex")]) expect(message).not.toContain(secret);
});

describe("a key file", () => {
  test("is read when it is its owner's or a group's alone", async () => {
    for (const mode of [0o400, 0o600, 0o640]) {
      expect(await readMasterKeys({ keyFile: await keyFile(text, mode) })).toHaveLength(2);
      await rm(join(home, "keys"), { force: true });
    }
  });

  test.each([0o604, 0o644, 0o602])("that everybody can open is refused: mode %o", async (mode) => {
    const error: unknown = await readMasterKeys({ keyFile: await keyFile(text, mode) }).catch((thrown) => thrown);
    expect(error).toBeInstanceOf(RepositoryConfigError);
    expect(String(error)).toContain("chmod 600");
  });

  test("that is missing, a folder or endless is refused", async () => {
    await mkdir(join(home, "folder"), { mode: 0o700 });
    await symlink("/dev/zero", join(home, "endless"));
    for (const name of ["missing", "folder", "endless"]) {
      await expect(readMasterKeys({ keyFile: join(home, name) }), name).rejects.toBeInstanceOf(RepositoryConfigError);
    }
  });
});

describe("a key command", () => {
  const node = process.execPath;

  test("gives the keys that it prints, and gets its arguments as they are", async () => {
    const path = await keyFile(text);
    const print = "process.stdout.write(require('fs').readFileSync(process.argv[1]))";
    expect(await readMasterKeys({ keyCommand: [node, "-e", print, path] })).toEqual(parseMasterKeys(text, "It"));
    const keyCommand = [node, "-e", print, `${path}; touch ${join(home, "shell")}`];
    await expect(readMasterKeys({ keyCommand })).rejects.toBeInstanceOf(RepositoryUnavailableError);
  });

  test.each([
    { what: "fails", program: "console.log(process.env.SECRET ?? 'secret'); process.exit(3)", reason: ": 3." },
    { what: "prints too much", program: "process.stdout.write('secret'.repeat(100000))", reason: "MAXBUFFER" },
  ])("that $what may work later, and nothing that it printed is told", async ({ program, reason }) => {
    const error = await readMasterKeys({ keyCommand: [node, "-e", program] }).catch(
      (thrown: unknown) => thrown as Error,
    );
    expect(error).toBeInstanceOf(RepositoryUnavailableError);
    expect(error).toMatchObject({ retryable: true, message: expect.stringContaining(reason) });
    expect(error).not.toHaveProperty("cause");
    expect(String(error)).not.toContain("secret");
  });

  test("beside a key file, or neither, is refused", async () => {
    const both = { keyFile: await keyFile(text), keyCommand: ["true"] };
    for (const source of [both, {}, { keyCommand: [] }]) {
      await expect(readMasterKeys(source)).rejects.toBeInstanceOf(RepositoryConfigError);
    }
  });
});

test("a data key is unwrapped by its own master key, for its own name, and unchanged, or not at all", () => {
  const dataKey = newDataKey();
  const master = { version: "1", secret: one };
  const object = Buffer.from(wrapDataKey(dataKey, master, "prefix_key_1"));
  expect(unwrapDataKey(object, master, "prefix_key_1")).toEqual(dataKey);
  expect(unwrapDataKey(object, { version: "1", secret: two }, "prefix_key_1")).toBeNull();
  expect(unwrapDataKey(object, master, "other_key_1")).toBeNull();
  expect(unwrapDataKey(Buffer.from("{}"), master, "prefix_key_1")).toBeNull();
  for (let at = 0; at < object.length; at += 7) {
    const changed = Buffer.from(object);
    changed[at] = (changed[at] ?? 0) ^ 1;
    const unwrapped = unwrapDataKey(changed, master, "prefix_key_1");
    // Every byte of the object is significant: changing any of them must invalidate it.
    expect(unwrapped, `byte ${at}`).toBeNull();
  }
});
