import { InvalidError } from "@tephra/control";
import { ClaimLostError, OperationEndedError, taskRanks } from "@tephra/control/work";
import { DamagedObjectError, NotReadyYetError, RangesIncompleteError, RepositoryFullError } from "@tephra/engine";
import { describe, expect, it } from "vitest";
import { assertClaimable, verdictOf } from "./consumers.ts";
import { CancelledError, DrainedError, LeaseLostError } from "./leases.ts";

describe("what an error says about the next step", () => {
  const first = { attempts: 1, waitedMs: 0 };
  const last = { attempts: 3, waitedMs: 0 };

  it.each([
    ["a lost claim is dropped", new ClaimLostError("t"), "drop"],
    ["a lost lease is dropped", new LeaseLostError("t", "late"), "drop"],
    ["a cancelled task ends", new CancelledError("t"), "cancel"],
    ["a task of an ended operation ends", new OperationEndedError("o"), "cancel"],
    ["a drained task goes back", new DrainedError(), "hand-back"],
    ["a full repository fails at once", new RepositoryFullError("full"), "fail"],
    ["a refusal of control fails at once", new InvalidError("volume", "no"), "fail"],
    ["what may pass is tried again", new RangesIncompleteError([1]), "retry"],
    ["what nobody knows is tried again", new Error("?"), "retry"],
  ])("%s", (_rule, error, next) => {
    expect(verdictOf(error, first, 3).next).toBe(next);
  });

  it("the last attempt fails with the error's own words", () => {
    expect(verdictOf(new Error("no route"), last, 3)).toEqual({ next: "fail", failure: { reason: "no route" } });
  });

  it("what another service is at work on is waited for without an attempt, until that has lasted too long", () => {
    const busy = new NotReadyYetError("cloning", { retryAfterMs: 700, giveUpAfterMs: 120_000 });
    const wait = { next: "snooze", reason: "cloning", delayMs: 700 };
    expect(verdictOf(busy, { attempts: 3, waitedMs: 119_999 }, 3)).toEqual(wait);
    const reason = "Gave up after 2 minutes. cloning";
    expect(verdictOf(busy, { attempts: 1, waitedMs: 120_000 }, 3)).toEqual({ next: "fail", failure: { reason } });
  });

  it("damage names backup and object", () => {
    const damage = { backupId: "b", object: "x-00001", reason: "md5 differs" };
    expect(verdictOf(new DamagedObjectError(damage), first, 3)).toMatchObject({ next: "fail", failure: { damage } });
  });
});

it("a task that is claimed without end ends its operation, whatever was forgiven: only claims that waited for another service are", () => {
  expect(() => assertClaimable({ claim: 100, waits: 0, kind: "copy" }, 100)).not.toThrow();
  expect(() => assertClaimable({ claim: 5_000, waits: 4_990, kind: "tidy" }, 100)).not.toThrow();
  expect(() => assertClaimable({ claim: 101, waits: 0, kind: "copy" }, 100)).toThrow(
    "Gave up after 100 claims of task copy",
  );
});

it("what finishes something ranks before what starts something", () => {
  expect(taskRanks.tidy).toBeLessThan(taskRanks.seal);
  expect(taskRanks.seal).toBeLessThan(taskRanks.copy);
  expect(taskRanks.copy).toBeLessThan(taskRanks["plan-backup"]);
});
