import { spawn } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { root } from "../../../scripts/bootstrap.mjs";
import { freePort } from "../../../scripts/spawn-program.ts";
import { patience } from "../../kit/wait-for.ts";
import { hashOf, projects, startEngineWithWorker } from "./engine.ts";

interface Step {
  command: string;
  printed: string;
}

/** The commands of a section's consoles, each with what is printed below it. */
function stepsOf(document: string, section: string): Step[] {
  const [, text = ""] = document.split(`\n### ${section}`);
  const blocks = text.split(/\n##/)[0]?.matchAll(/```console\n(.*?)```/gs) ?? [];
  return [...blocks].flatMap(([, block = ""]) =>
    block
      .split(/^\$ /m)
      .slice(1)
      .map((step) => {
        const [command = "", ...printed] = step.split("\n");
        return { command, printed: printed.join("\n") };
      }),
  );
}

/** What a shell prints that is given all commands, one after the other; it ends at the first that fails. */
function run(steps: readonly Step[], dir: string): Promise<string[]> {
  const script = steps.map(({ command }) => `${command}\nprintf '\\0'`).join("\n");
  const shell = spawn("bash", ["-euc", script], {
    cwd: dir,
    stdio: ["ignore", "pipe", "inherit"],
    timeout: 120_000 * patience,
  });
  let printed = "";
  shell.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    printed += chunk;
  });
  return new Promise((resolve, reject) => {
    shell.on("error", reject);
    shell.on("close", () => resolve(printed.split("\0")));
  });
}

it("the worked example does what it says, as it is printed", { timeout: 240_000 * patience }, async () => {
  const user = { name: "admin@internal", password_hash: hashOf("PASSWORD"), project_id: projects.a, roles: ["member"] };
  await using instance = await startEngineWithWorker({
    config: { ovirt: { users: [user] }, image_transfers: { port: await freePort() } },
  });
  await instance.startTransfer();
  const document = readFileSync(join(root, "docs/ovirt.md"), "utf8");
  const steps = stepsOf(document.replaceAll("http://127.0.0.1:8776", instance.url), "1.1 A worked example");
  expect(steps.length).toBeGreaterThan(20);
  const dir = join(instance.dataDir, "example");
  mkdirSync(dir);
  const printed = await run(steps, dir);
  expect(
    steps.map(({ command }, at) => ({ command, printed: printed[at] })),
    instance.logs(),
  ).toEqual(steps);
});
