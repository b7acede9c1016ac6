import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { VolumeStorageError } from "../../errors.ts";
import { askCeph, linesOfRbd, runRbd } from "./rbd-command.ts";

const access = { pool: "p", namespace: null, conf: "/dev/null", user: null, keyring: null };
const task = { shown: "rbd:p/image", doing: "compared" };

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-rbd-command-"));
  vi.stubEnv("PATH", `${home}:/usr/bin:/bin`);
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await rm(home, { recursive: true, force: true });
});

/** What stands in for a program of Ceph. */
async function programIs(name: string, lines: string): Promise<void> {
  await writeFile(join(home, name), `#!/bin/sh\n${lines}\n`);
  await chmod(join(home, name), 0o755);
}

it("an answer that is no JSON is an error of the storage, with its beginning", async () => {
  for (const program of ["rbd", "ceph"]) await programIs(program, `printf 'warning: \\033[1mold\\n["a"'; seq 1000`);
  for (const asking of [() => runRbd(["ls"], access, task.shown), () => askCeph(["df"], access, task)]) {
    const error = await asking().catch((cause: unknown) => cause);
    expect(error).toBeInstanceOf(VolumeStorageError);
    const { message } = error as VolumeStorageError;
    expect(message).toContain('"warning: ?[1mold?[\\"a\\"1?2?3');
    expect(message.length).toBeLessThan(400);
  }
});

it("a reader that takes long between two lines gets all of them, however impatient the wait for Ceph", async () => {
  const count = 20_000;
  await programIs("rbd", `seq ${count}`);
  // A busy machine may take its time to start the program.
  const silenceMs = 1_000;
  let read = 0;
  for await (const line of linesOfRbd(["diff"], access, task, { silenceMs })) {
    read += 1;
    expect(line).toBe(String(read));
    // So long has a program been silent then whose output nobody takes.
    if (read === 100 || read === 10_000) await sleep(1.5 * silenceMs);
  }
  expect(read).toBe(count);
});

it("a program that says nothing more is given up, also after a line that was read slowly", async () => {
  await programIs("rbd", "echo first\nexec sleep 600");
  const silenceMs = 300;
  const read = async (): Promise<void> => {
    for await (const line of linesOfRbd(["diff"], access, task, { silenceMs })) {
      expect(line).toBe("first");
      await sleep(2 * silenceMs);
    }
  };
  await expect(read()).rejects.toMatchObject({
    code: "volume_storage",
    message: expect.stringContaining("did not answer for 0.3 s"),
  });
});
