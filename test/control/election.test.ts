import type { Database } from "@tephra/control";
import { type Election, joinElection, openLog, type Role } from "@tephra/control/process";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { withClient } from "../../scripts/postgres.ts";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

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
  expect(lost).toEqual([]);
});

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
