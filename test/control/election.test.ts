import type { Database } from "@tephra/control";
import { type Election, joinElection, openLog, type Role } from "@tephra/control/process";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";
import { withClient } from "../../scripts/postgres.ts";
import { type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { openControl } from "../kit/control-database.ts";
import { isLong, times } from "../kit/long.ts";
import { patience, waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;

beforeAll(async () => {
  ({ databaseUrl, database } = await openControl(stack));
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => void (await database.leader.deleteMany()));

const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const role: Role = "dispatcher";

/** So many processes as far as the election knows; `await using` ends all of them. */
function joinAll(count: number): { all: Election[]; holders: () => Election[] } & AsyncDisposable {
  const all = Array.from({ length: count }, (_, i) => joinElection({ database, log, id: `p${i}`, roles: [role] }));
  return {
    all,
    holders: () => all.filter((election) => election.holds(role)),
    [Symbol.asyncDispose]: async () => void (await Promise.all(all.map((election) => election.stop()))),
  };
}

it("gives a role to one process, and to another one once that has ended", async () => {
  await using processes = joinAll(5);
  await waitFor(() => processes.holders().length === 1, { what: "one holds the role" });
  const [first] = processes.holders();
  await first?.stop();
  expect(first?.holds(role)).toBe(false);
  await waitFor(() => processes.holders().length === 1, { what: "another one holds the role" });
  expect(processes.holders()).not.toContain(first);
});

it("takes a role from nobody who holds it, however many want it", async () => {
  // On a busy machine all of them may be asleep for so long that the holder lets go by itself: that is seen once, not each time.
  let lost = await lostInTerm();
  for (let more = 0; more < 5 && lost.length > 0; more += 1) lost = await lostInTerm();
  expect(lost).toEqual([]);
});

/** The roles that one of four, which holds one, loses while it renews it for longer than a term. */
async function lostInTerm(): Promise<Role[]> {
  await using processes = joinAll(4);
  await waitFor(() => processes.holders().length === 1, { what: "one holds the role" });
  const [holder] = processes.holders();
  const lost: Role[] = [];
  holder?.onChange((changed, holds) => {
    if (!holds) lost.push(changed);
  });
  const before = await database.leader.findUniqueOrThrow({ where: { role } });
  const renewed = async (): Promise<boolean> => {
    const { heldUntil } = await database.leader.findUniqueOrThrow({ where: { role } });
    return heldUntil.getTime() > before.heldUntil.getTime() + 3_000;
  };
  await waitFor(renewed, { what: "the role was renewed for longer than a term" });
  return [...lost]; // More are lost when all of them end.
}

it("is held by nobody while its row cannot be renewed, and then again", async () => {
  await using processes = joinAll(2);
  await waitFor(() => processes.holders().length === 1, { what: "one holds the role" });
  await withClient(databaseUrl, async (locker) => {
    await locker.query("BEGIN; LOCK TABLE leaders IN ACCESS EXCLUSIVE MODE");
    const isOver = async (): Promise<boolean> =>
      (await locker.query("SELECT clock_timestamp() > held_until AS over FROM leaders")).rows[0].over;
    await waitFor(isOver, { what: "the term is over" });
    expect(processes.holders()).toEqual([]);
    await locker.query("COMMIT");
  });
  await waitFor(() => processes.holders().length === 1, { what: "one holds the role again" });
});

it("goes to another process when its holder resigns, or its work does not move on", async () => {
  await using processes = joinAll(2);
  await waitFor(() => processes.holders().length === 1, { what: "one holds the role" });
  const [first] = processes.holders();
  first?.resign(role);
  expect(first?.holds(role)).toBe(false);
  await waitFor(() => processes.holders().length === 1, { what: "the other one holds the role" });
  const [second] = processes.holders();
  expect(second).not.toBe(first);
  const { promise: stuck, resolve: end } = Promise.withResolvers<void>();
  const working = second?.during(role, 100, () => stuck);
  await waitFor(() => first?.holds(role) === true, { what: "the first one is back" });
  end();
  await working;
});

it("is free where its deadline was written before the clock was set back", async () => {
  await database.$executeRaw`INSERT INTO leaders (role, holder, held_until) VALUES (${role}, 'gone', now() + interval '1 hour')`;
  await using processes = joinAll(1);
  await waitFor(() => processes.holders().length === 1, { what: "the role is held" });
});

const candidate = `
  import { joinElection, openDatabase, openLog } from "@tephra/control/process";
  const log = openLog({ log_level: "silent", hostName: "test" }, "test");
  const database = openDatabase(process.argv[1], { work: "beat", connectionsMax: 2 });
  const election = joinElection({ database, log, id: String(process.pid), roles: ["dispatcher"] });
  election.onChange((_, holds) => { if (holds) process.stdout.write("won\\n"); });
  await database.$queryRaw\`SELECT 1\`;
  process.stdout.write("ready\\n");
  setInterval(() => {}, 1000);`;

const kills = times({ usual: 3, long: 60 });
const takeoverMsMax = 3_000;

it(`is taken over within 3 s when its holder is killed (${kills} times)`, {
  timeout: kills * 20_000 * patience + 60_000,
}, async () => {
  await using programs = new AsyncDisposableStack();
  const alive = new Map<number, Program>();
  let won: { pid: number; at: number } | null = null;
  const start = async (): Promise<void> => {
    const ready = Promise.withResolvers<void>();
    const program = await spawnProgram({
      name: "candidate",
      command: projectNode(),
      args: ["--input-type=module", "--eval", candidate, databaseUrl],
      env: process.env,
      cwd: `${root}/test`,
      onLine: (line) => {
        if (line === "ready") ready.resolve();
        if (line === "won") won = { pid: program.pid, at: performance.now() };
      },
    });
    programs.defer(async () => void (await program.stop({ signal: "SIGKILL" })));
    alive.set(program.pid, program);
    await Promise.race([ready.promise, program.exited]);
  };
  await Promise.all([start(), start(), start()]);
  const tookMs: number[] = [];
  for (let kill = 0; kill < kills; kill += 1) {
    const holder = await waitFor(() => won && alive.get(won.pid), { what: "one holds the role" });
    alive.delete(holder.pid);
    const killedAt = performance.now();
    holder.kill("SIGKILL");
    const next = await waitFor(() => won?.pid !== holder.pid && won, { what: "another one holds it", everyMs: 5 });
    tookMs.push(next.at - killedAt);
    if (isLong) process.stdout.write(`takeover ${kill + 1} of ${kills}: ${Math.round(next.at - killedAt)} ms\n`);
    await start();
  }
  // A machine that also runs other tests may hold one of them up.
  const slow = tookMs.filter((ms) => ms > takeoverMsMax * patience);
  expect(slow.length, `after ${tookMs.map(Math.round).join(", ")} ms`).toBeLessThanOrEqual(isLong ? 0 : 1);
});
