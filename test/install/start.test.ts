import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { expect, inject, onTestFinished, test } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { commandLine } from "../../scripts/postgres.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { waitFor } from "../kit/wait-for.ts";

const project = "00000000000000000000000000000001";

interface House {
  dataDir: string;
  port: number;
  url: string;
}

async function plot(): Promise<House> {
  const dataDir = mkdtempSync(join(inject("servers").dir, "house-"));
  chmodSync(dataDir, 0o711); // As root, PostgreSQL runs as another user, who must get here.
  onTestFinished(async () => {
    for (const pid of processesOf(dataDir)) process.kill(pid, "SIGKILL");
    await waitFor(() => processesOf(dataDir).length === 0, { what: "nothing is left of the house" });
    rmSync(dataDir, { recursive: true, force: true });
  });
  const port = await freePort();
  return { dataDir, port, url: `http://127.0.0.1:${port}` };
}

/** `npm start`, as a user would type it. */
async function start({ dataDir, port }: House): Promise<Program> {
  const env = { PATH: process.env["PATH"], HOME: dataDir, TEPHRA_DATA_DIR: dataDir, TEPHRA_PORT: String(port) };
  return spawnProgram({ name: "npm start", command: "npm", args: ["start"], cwd: root, env });
}

async function started(house: House): Promise<Program> {
  const program = await start(house);
  const line = `ready ${house.url}`;
  await waitFor(() => !program.running() || program.tail().includes(line), {
    what: line,
    timeoutMs: 60_000,
    context: () => program.tail(),
  });
  expect(program.running(), program.tail()).toBe(true);
  return program;
}

/** Ctrl-C at a terminal: the whole group gets the signal, npm as well as what it runs. */
async function interrupt(program: Program): Promise<number | null> {
  process.kill(-program.pid, "SIGINT");
  return (await program.exited).code;
}

/** Everything that runs for a data folder: by its arguments, environment or working folder. */
function processesOf(dataDir: string): number[] {
  const read = (path: string, how: (path: string) => string): string => {
    try {
      return how(path);
    } catch {
      return "";
    }
  };
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid)
    .filter((pid) =>
      [
        read(`/proc/${pid}/cmdline`, (path) => readFileSync(path, "latin1")),
        read(`/proc/${pid}/environ`, (path) => readFileSync(path, "latin1")),
        read(`/proc/${pid}/cwd`, readlinkSync),
      ].some((text) => text.includes(dataDir)),
    );
}

async function volumeNames(house: House): Promise<string[]> {
  const response = await fetch(`${house.url}/v3/${project}/volumes`);
  const { volumes } = (await response.json()) as { volumes: { name: string }[] };
  return volumes.map(({ name }) => name);
}

async function createVolume(house: House, name: string): Promise<void> {
  const response = await fetch(`${house.url}/v3/${project}/volumes`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ volume: { size: 1, name } }),
  });
  expect(response.status).toBe(202);
}

/** What others than its owner may do something with. */
function openToOthers(folder: string): string[] {
  const paths = [folder, ...readdirSync(folder, { recursive: true }).map((name) => join(folder, String(name)))];
  // Programs at work remove files again.
  return paths.filter((path) => ((lstatSync(path, { throwIfNoEntry: false })?.mode ?? 0) & 0o077) !== 0);
}

test("Ctrl-C leaves no process, and a second start finds all data again; logs and queues are the owner's alone", async () => {
  const house = await plot();
  mkdirSync(join(house.dataDir, "log"));
  writeFileSync(join(house.dataDir, "log/of-an-older-version.log"), "", { mode: 0o644 });
  const first = await started(house);
  for (const name of ["log", "redis", "run", "exchange"]) {
    expect(openToOthers(join(house.dataDir, name)), name).toEqual([]);
  }
  await createVolume(house, "kept");
  expect(await interrupt(first)).toBe(0);
  // What watched over the programs ends when they have ended.
  await expect.poll(() => processesOf(house.dataDir)).toEqual([]);
  const second = await started(house);
  expect(await volumeNames(house)).toEqual(["kept"]);
  expect(await interrupt(second)).toBe(0);
  await expect.poll(() => processesOf(house.dataDir)).toEqual([]);
});

test("the commands that it prints work as they are", async () => {
  const house = await plot();
  const program = await started(house);
  const commands = [...program.tail().matchAll(/^ +npx (tephra .*)$/gm)].map(([, command]) => command ?? "");
  expect(commands.length).toBeGreaterThan(2);
  for (const command of commands) {
    const [name, ...args] = command.split(" ");
    const bin = join(root, "node_modules/.bin", name ?? "");
    const env = { PATH: process.env["PATH"], HOME: house.dataDir };
    const run = await spawnProgram({ name: command, command: bin, args, env });
    expect((await run.exited).code, `${command}\n${run.tail()}`).toBe(0);
  }
  expect(await interrupt(program)).toBe(0);
});

test("two houses with other ports and folders stand side by side", async () => {
  const [left, right] = [await plot(), await plot()];
  const programs = [await started(left), await started(right)];
  await createVolume(left, "left");
  await createVolume(right, "right");
  expect(await volumeNames(left)).toEqual(["left"]);
  expect(await volumeNames(right)).toEqual(["right"]);
  expect(await Promise.all(programs.map(interrupt))).toEqual([0, 0]);
});

test("a supervisor that is killed takes everything with it, and the next start recovers", async () => {
  const house = await plot();
  const first = await started(house);
  await createVolume(house, "kept");
  process.kill(-first.pid, "SIGKILL");
  await waitFor(() => processesOf(house.dataDir).length === 0, { what: "no process outlives the supervisor" });
  const second = await started(house);
  expect(await volumeNames(house)).toEqual(["kept"]);
  expect(await interrupt(second)).toBe(0);
});

test("a program or a server that falls over is started again", async () => {
  const house = await plot();
  const program = await started(house);
  const redis = Number(readFileSync(join(house.dataDir, "redis/redis.pid"), "utf8"));
  for (const pid of [
    ...childrenOf(house, "apps/worker/dist/main.js"),
    ...childrenOf(house, "apps/api/dist/main.js"),
    redis,
  ]) {
    process.kill(pid, "SIGKILL");
  }
  const well = async (): Promise<boolean> => {
    if (childrenOf(house, "apps/worker/dist/main.js").length !== 2) return false;
    return (await fetch(`${house.url}/readyz`)).status === 200;
  };
  await waitFor(well, { what: "two workers and a ready API", timeoutMs: 60_000, context: () => program.tail() });
  expect(await interrupt(program)).toBe(0);
});

function childrenOf(house: House, entry: string): number[] {
  return processesOf(house.dataDir).filter((pid) => commandLine(pid).includes(entry));
}

test("a port in use, a folder in use and a wrong configuration are told in one sentence each, before anything is started", async () => {
  const house = await plot();
  const server = createServer().listen(house.port, "127.0.0.1");
  onTestFinished(() => void server.close());
  const refused = await start(house);
  expect((await refused.exited).code).toBe(1);
  expect(refused.tail()).toContain(`tephra: 127.0.0.1:${house.port} cannot be listened on`);
  expect(refused.tail()).not.toContain("    at ");

  const nonLoopback = await spawnProgram({
    name: "npm start",
    command: "npm",
    args: ["start"],
    cwd: root,
    env: { PATH: process.env["PATH"], HOME: house.dataDir, TEPHRA_DATA_DIR: house.dataDir, TEPHRA_HOST: "0.0.0.0" },
  });
  expect((await nonLoopback.exited).code).toBe(1);
  expect(nonLoopback.tail()).toContain("host: must be a loopback address when auth.mode is none");

  mkdirSync(join(house.dataDir, "run"), { recursive: true });
  server.close();
  const first = await started(house);
  const second = await start({ ...house, port: await freePort() });
  expect((await second.exited).code).toBe(1);
  expect(second.tail()).toContain("is in use by another Tephra");
  expect(await interrupt(first)).toBe(0);
});
