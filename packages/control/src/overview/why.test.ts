import { describe, expect, it } from "vitest";
import { type TaskFacts, type WhyCode, type WhyFacts, whyOf } from "./why.ts";

const at = new Date("2026-11-30T03:00:00Z");

const taskOf = (more: Partial<TaskFacts> = {}): TaskFacts => ({
  state: "ready",
  kind: "copy",
  needs: ["repository:main", "backend:files"],
  workerId: null,
  tasks: 1,
  attempts: 0,
  waits: 0,
  nextAt: at,
  later: false,
  unplacedAt: null,
  failReason: null,
  overdue: false,
  quietSince: null,
  ...more,
});

const running = (more: Partial<TaskFacts> = {}): TaskFacts =>
  taskOf({ state: "running", workerId: "w1", attempts: 1, ...more });

type WorkerFacts = WhyFacts["workers"][number];

const workerOf = (more: Partial<WorkerFacts> = {}): WorkerFacts => ({
  id: "w1",
  host: "alpha",
  state: "live",
  heartbeatAt: at,
  reaches: ["repository:main", "backend:files"],
  unreachable: {},
  ...more,
});

const factsOf = (more: Partial<Omit<WhyFacts, "operation">> & { operation?: Partial<WhyFacts["operation"]> }) => {
  const { operation, ...rest } = more;
  const facts: WhyFacts = {
    operation: {
      state: "running",
      kind: "backup-create",
      createdAt: at,
      startedAt: at,
      finishedAt: null,
      queuePosition: null,
      rateBytesPerSecond: null,
      ...operation,
    },
    tasks: [taskOf()],
    workers: [workerOf()],
    parts: 0,
    caps: [],
    limits: [],
    attemptsMax: 3,
    named: true,
    ...rest,
  };
  return facts;
};

/** Each code, by facts of which it is to be told, and what the sentence says. */
const cases: Record<WhyCode, readonly [WhyFacts, string]> = {
  queue: [
    factsOf({ operation: { state: "queued", queuePosition: 3 } }),
    "It is number 3 in the queue: 2 operations are ahead.",
  ],
  no_worker: [
    factsOf({
      workers: [workerOf({ reaches: ["backend:files"], unreachable: { "repository:main": "The mount is gone." } })],
    }),
    "No worker reaches what it needs (repository main). alpha: The mount is gone.",
  ],
  disabled_hosts: [
    factsOf({ workers: [workerOf({ state: "disabled" })] }),
    "The workers that could do it are on disabled hosts, which take no new tasks: alpha.",
  ],
  capped_project: [
    factsOf({
      tasks: [running({ tasks: 2 }), taskOf({ tasks: 5 })],
      caps: [{ code: "capped_project", subject: "p", running: 2, max: 2 }],
    }),
    "2 tasks of it run; 5 more tasks may not yet: project p runs at most 2 tasks while others wait.",
  ],
  capped_repository: [
    factsOf({ caps: [{ code: "capped_repository", subject: "main", running: 1, max: 1 }] }),
    "1 task may not yet: at most 1 task at a time use repository main.",
  ],
  limited_rate: [
    factsOf({
      operation: { rateBytesPerSecond: 900 },
      tasks: [running()],
      limits: [{ traffic: "volumes", of: "backend files", bytesPerSecond: 1000 }],
    }),
    "It is as fast as a limit allows: for backend files, volumes are read at 1000 bytes a second at most.",
  ],
  backing_off: [
    factsOf({ tasks: [taskOf({ later: true, attempts: 1, failReason: "The store said no." })] }),
    "Try 1 of 3 has failed, next try at 2026-11-30T03:00:00.000Z: The store said no.",
  ],
  taking_over: [
    factsOf({ tasks: [running()], workers: [workerOf({ state: "silent" })] }),
    "Worker w1 on alpha is silent: what it was doing is taken over when its lease has run out, from where it was.",
  ],
  no_progress: [
    factsOf({ tasks: [running({ quietSince: at })] }),
    "Workers are alive, but no byte has moved for over 60 seconds: the volume or the repository does not answer.",
  ],
  waits_for: [factsOf({ tasks: [], parts: 2 }), "It waits for 2 operations that it is made of."],
  ending: [factsOf({ tasks: [running({ kind: "seal" })] }), "All bytes are there; it is being completed."],
  fine: [factsOf({ tasks: [running({ tasks: 2 }), taskOf()] }), "2 tasks run, 1 more wait for a free slot."],
};

describe("why", () => {
  it.each(Object.entries(cases))("tells %s in a sentence", (code, [facts, text]) => {
    expect(whyOf(facts)).toMatchObject({ code, text });
  });

  it("names no worker to those who see one project only", () => {
    for (const [facts] of Object.values(cases)) {
      const why = whyOf({ ...facts, named: false });
      expect(`${why?.text} ${why?.subject}`).not.toMatch(/alpha|w1/);
    }
  });

  it("has nothing to tell of what has ended, unless it is being cleaned up", () => {
    const ended = { state: "cancelled", finishedAt: at } as const;
    expect(whyOf(factsOf({ operation: ended, tasks: [] }))).toBeNull();
    expect(whyOf(factsOf({ operation: ended, tasks: [taskOf({ kind: "tidy" })] }))).toMatchObject({
      code: "ending",
      text: "It has ended; 1 task of cleaning up is left.",
    });
  });

  it("tells something of every live operation, whatever its tasks", () => {
    const states = ["ready", "dispatched", "running", "blocked"] as const;
    for (const operation of [{ state: "queued", queuePosition: 1 } as const, { state: "running" } as const]) {
      expect(whyOf(factsOf({ operation, tasks: [], workers: [] }))).not.toBeNull();
      for (const state of states) {
        for (const later of [false, true]) {
          for (const workers of [[], [workerOf()]]) {
            const why = whyOf(factsOf({ operation, tasks: [taskOf({ state, later })], workers }));
            expect(why?.text, `${state} ${later}`).toMatch(/^[A-Z0-9].*\.$/);
          }
        }
      }
    }
  });
});
