import { execFile, execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, statfs, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import {
  InvalidContainerError,
  ObjectMissingError,
  openRepository,
  parseContainer,
  type Repository,
  RepositoryConfigError,
  RepositoryUnavailableError,
  stagingContainer,
} from "@tephra/engine";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { root } from "../../../scripts/bootstrap.mjs";
import { describeRepository } from "./repository-contract.ts";

const execute = promisify(execFile);

const free = { signal: new AbortController().signal, fence: () => {} };

async function openPlace(): Promise<{ path: string; repository: Repository } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "tephra-posix-"));
  const repository = await openRepository(`posix:${path}`);
  return { path, repository, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

describeRepository({
  name: "posix",
  prefix: "names",
  largeBytes: null,
  exclusive: true,
  open: async () => {
    const place = await openPlace();
    return {
      repository: place.repository,
      container: "some-container",
      otherContainer: "ab/cd/ef",
      again: () => openRepository(`posix:${place.path}`),
      missing: () => openRepository(`posix:${join(place.path, "missing")}`),
      denied: null,
      [Symbol.asyncDispose]: place[Symbol.asyncDispose],
    };
  },
});

describe("a posix repository", () => {
  let place: Awaited<ReturnType<typeof openPlace>>;
  beforeEach(async () => {
    place = await openPlace();
  });
  afterEach(() => place[Symbol.asyncDispose]());

  test("says how much its file system has free, and fails where it is missing", async () => {
    const free = (await place.repository.freeBytes()) ?? 0;
    const { blocks, bsize } = await statfs(place.path);
    expect(free).toBeGreaterThan(0);
    expect(free).toBeLessThanOrEqual(blocks * bsize);
    const missing = await openRepository(`posix:${join(place.path, "missing")}`);
    await expect(missing.freeBytes()).rejects.toBeInstanceOf(RepositoryUnavailableError);
  });

  test("a missing folder is unavailable, never created by asking for its identity", async () => {
    const missing = join(place.path, "missing");
    const repository = await openRepository(`posix:${missing}`);
    await expect(repository.identity()).rejects.toBeInstanceOf(RepositoryUnavailableError);
    expect(await readdir(place.path)).toEqual([]);
  });

  test("files are 0660 and folders 0770 whatever the umask", async () => {
    const before = process.umask(0o077);
    try {
      await place.repository.initialize();
      await place.repository.ensureContainer("ab/cd/ef");
      await place.repository.putIfAbsent({ container: "ab/cd/ef", name: "object" }, Buffer.from("x"), free);
    } finally {
      process.umask(before);
    }
    for (const folder of ["ab", "ab/cd", "ab/cd/ef", ".tephra"]) {
      expect((await stat(join(place.path, folder))).mode & 0o777).toBe(0o770);
    }
    for (const file of ["ab/cd/ef/object", ".tephra/repository.json"]) {
      expect((await stat(join(place.path, file))).mode & 0o777).toBe(0o660);
    }
  });

  test("no temporary file is left behind by success, conflict, abort or a failing body", async () => {
    await place.repository.initialize();
    await place.repository.ensureContainer("c");
    const key = { container: "c", name: "object" };
    await place.repository.putIfAbsent(key, Buffer.from("one"), free);
    await place.repository.putIfAbsent(key, Buffer.from("one"), free);
    await expect(place.repository.putIfAbsent(key, Buffer.from("two"), free)).rejects.toThrow();
    const failing = async function* (): AsyncGenerator<Uint8Array> {
      yield Buffer.from("x");
      throw new Error("no more");
    };
    await expect(place.repository.putIfAbsent({ container: "c", name: "other" }, failing(), free)).rejects.toThrow();
    expect(await readdir(join(place.path, ".tephra/tmp"))).toEqual([]);
    expect(await readdir(join(place.path, "c"))).toEqual(["object"]);
  });

  test("files of puts that never ended are found and removed, and nothing else beside them", async () => {
    const { repository, path } = place;
    await repository.initialize();
    await mkdir(join(path, ".tephra/tmp"), { recursive: true });
    const id = "0b2d9f0e-3c52-4f4e-9b5f-6d7a1c9e8f10";
    for (const name of [id, "mine"]) await writeFile(join(path, ".tephra/tmp", name), "x");
    await mkdir(join(path, ".tephra", id));
    const found = await Array.fromAsync(repository.leftovers([]));
    expect(found).toMatchObject([
      { kind: "temporary", name: id },
      { kind: "staged", operationId: id },
    ]);
    for (const each of found) await repository.removeLeftover(each, free);
    expect(await readdir(join(path, ".tephra/tmp"))).toEqual(["mine"]);
    expect((await readdir(join(path, ".tephra"))).sort()).toEqual(["repository.json", "tmp"]);
  });

  test("a container that is a symbolic link is refused, to write and to read", async () => {
    await using outside = await openPlace();
    await writeFile(join(outside.path, "secret"), "secret");
    await place.repository.initialize();
    await symlink(outside.path, join(place.path, "link"));
    const key = { container: "link", name: "secret" };
    await expect(place.repository.stat(key)).rejects.toBeInstanceOf(InvalidContainerError);
    await expect(place.repository.remove(key)).rejects.toBeInstanceOf(InvalidContainerError);
    await expect(place.repository.ensureContainer("link")).rejects.toBeInstanceOf(InvalidContainerError);
    const put = place.repository.putIfAbsent({ container: "link", name: "new" }, Buffer.from("x"), free);
    await expect(put).rejects.toBeInstanceOf(InvalidContainerError);
    expect(await readdir(outside.path)).toEqual(["secret"]);
  });

  test("an object that is a symbolic link or a FIFO is refused without hanging", async () => {
    await place.repository.initialize();
    await place.repository.ensureContainer("c");
    await writeFile(join(place.path, "secret"), "secret");
    await symlink(join(place.path, "secret"), join(place.path, "c/link"));
    execFileSync("mkfifo", [join(place.path, "c/fifo")]);
    for (const name of ["link", "fifo"]) {
      const key = { container: "c", name };
      await expect(Array.fromAsync(place.repository.get(key))).rejects.toBeInstanceOf(RepositoryUnavailableError);
      await expect(place.repository.putIfAbsent(key, Buffer.from("secret"), free)).rejects.toThrow();
    }
    expect(await readFile(join(place.path, "secret"), "utf8")).toBe("secret");
  });

  test("a folder that is not a repository is not taken for one", async () => {
    await mkdir(join(place.path, "photos"));
    await writeFile(join(place.path, "photos/cat.jpg"), "x");
    expect(await place.repository.holdsOnly(() => false)).toBe(false);
  });

  test("a damaged marker is no marker", async () => {
    await place.repository.initialize();
    await writeFile(join(place.path, ".tephra/repository.json"), '{"id": "x"}');
    await expect(place.repository.identity()).rejects.toThrow("not readable");
  });
});

test.each(["", "s3:My_Bucket", "posix:", "/tmp", "posix:a\0b"])("the URL %j names no repository", async (url) => {
  await expect(openRepository(url)).rejects.toBeInstanceOf(RepositoryConfigError);
});

test.each(["volumebackups", "ab/cd/1234", "a b", "ünï", "x".repeat(255)])(
  "a user may name the container %j",
  (text) => {
    expect(parseContainer(text)).toBe(text);
  },
);

test.each([
  "",
  "/abs",
  "..",
  "a/../b",
  "a//b",
  "a/",
  "./a",
  "a\0",
  "a\\b",
  "a\nb",
  ".tephra",
  ".tephra/x",
  ".tephra-else",
  "x".repeat(256),
  "ü".repeat(128),
])("a user may not name the container %j", (text) => {
  expect(() => parseContainer(text)).toThrow(InvalidContainerError);
});

test.each([true, false])(
  "bytes that were flipped on their way to the disk get no name with read_back (%s)",
  async (readBack) => {
    await using place = await openPlace();
    const library = `${place.path}.so`;
    const source = join(root, "test/kit/flipping-writes.c");
    await execute("cc", ["-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]);
    const key = { container: "c", name: "object" };
    const program = `
    import { openRepository } from "@tephra/engine";
    const repository = await openRepository(${JSON.stringify(`posix:${place.path}`)}, { readBack: ${readBack} });
    await repository.ensureContainer("c");
    const free = { signal: new AbortController().signal, fence: () => {} };
    const put = repository.putIfAbsent(${JSON.stringify(key)}, Buffer.alloc(3_000_000, "text"), free);
    console.log(await put.catch((error) => error.code + ": " + error.message));
  `;
    const env = { ...process.env, LD_PRELOAD: library, FLIP_PATH: `${place.path}/.tephra/tmp/` };
    const args = ["--input-type=module", "--eval", program];
    const { stdout } = await execute(process.execPath, args, { env, cwd: root }).finally(() =>
      rm(library, { force: true }),
    );
    if (readBack) {
      expect(stdout).toMatch(
        /^repository_unavailable: .*does not keep its files: what was written is not what is read/,
      );
      await expect(place.repository.stat(key)).rejects.toBeInstanceOf(ObjectMissingError);
      expect(await readdir(join(place.path, ".tephra/tmp"))).toEqual([]);
    } else {
      // Shows that the fault is there to be found.
      expect(stdout.trim()).toBe("stored");
      expect((await readFile(join(place.path, "c/object")))[0]).toBe("t".charCodeAt(0) ^ 1);
    }
  },
);

test("staging lies where no user can name it", () => {
  expect(() => parseContainer(stagingContainer("a-b"))).toThrow(InvalidContainerError);
  for (const id of ["", "..", "a/b", ".x"]) expect(() => stagingContainer(id)).toThrow();
});
