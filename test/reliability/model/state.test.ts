import { randomUUID } from "node:crypto";
import type { Database } from "@tephra/control";
import { loadConfig, openDatabase } from "@tephra/control/process";
import fc from "fast-check";
import { afterAll, beforeAll, expect, inject, it } from "vitest";
import { createDatabase } from "../../kit/instance.ts";
import { limits, type Reference, usage } from "./reference.ts";
import { type Choice, type Real, verbs } from "./verbs.ts";

/** Without a number of runs: as many as there is time for. */
const asked = process.env["TEPHRA_MODEL_RUNS"];
const runs = Number(asked ?? 60);
const sampleMs = 15_000;
/** Histories at once, each of a project of its own, with seeds from `seed` on. */
const lanes = 4;
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? Math.floor(Math.random() * 1e9));

const stack = new AsyncDisposableStack();
let database: Database;
let url: string;
beforeAll(async () => {
  url = await createDatabase(inject("servers"), stack);
  database = openDatabase(url, { connectionsMax: lanes });
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

type Rows = (readonly unknown[])[];

interface There {
  volumes: Rows;
  snapshots: Rows;
  backups: Rows;
  operations: Rows;
  usage: readonly number[];
}

/** Everything that a project has must be as the reference says. */
async function compare(reference: Reference, { database, principal }: Real): Promise<void> {
  const project = principal.projectId;
  // One question: it is asked after every step.
  const [there] = await database.$queryRaw<There[]>`SELECT
    (SELECT coalesce(json_agg(json_build_array(id, status, size_gib, EXISTS (
        SELECT FROM attachments a WHERE a.volume_id = v.id))), '[]') FROM volumes v WHERE project_id = ${project}) AS volumes,
    (SELECT coalesce(json_agg(json_build_array(id, status)), '[]') FROM snapshots WHERE project_id = ${project}) AS snapshots,
    (SELECT coalesce(json_agg(json_build_array(id, status, deleted_at IS NOT NULL)), '[]')
       FROM backups WHERE project_id = ${project}) AS backups,
    (SELECT coalesce(json_agg(json_build_array(id, kind)), '[]')
       FROM operations WHERE project_id = ${project} AND state IN ('queued', 'running')) AS operations,
    (SELECT json_build_array(volumes_used, snapshots_used, gigabytes_used, backups_used, backup_gigabytes_used)
       FROM quotas WHERE project_id = ${project}) AS usage`;
  const byId = (rows: Rows = []): Rows => rows.toSorted((one, other) => (String(one[0]) < String(other[0]) ? -1 : 1));
  const used = usage(reference);
  expect({
    volumes: byId(there?.volumes),
    snapshots: byId(there?.snapshots),
    backups: byId(there?.backups),
    operations: byId(there?.operations),
    usage: there?.usage ?? [0, 0, 0, 0, 0],
  }).toEqual({
    volumes: byId(reference.volumes.map((row) => [row.id, row.status, row.size, row.attached])),
    snapshots: byId(reference.snapshots.map((row) => [row.id, row.status])),
    backups: byId(reference.backups.map((row) => [row.id, row.status, row.status === "deleted"])),
    operations: byId(reference.operations.map((row) => [row.id, row.kind])),
    usage: [used.volumes, used.snapshots, used.gigabytes, used.backups, used.backup_gigabytes],
  });
}

class Step implements fc.AsyncCommand<Reference, Real> {
  readonly name: string;
  readonly choice: Choice;
  constructor(name: string, choice: Choice) {
    this.name = name;
    this.choice = choice;
  }
  check(): boolean {
    return true;
  }
  async run(reference: Reference, real: Real): Promise<void> {
    await verbs[this.name]?.(reference, real, this.choice);
    await compare(reference, real);
  }
  toString(): string {
    return `${this.name}(${JSON.stringify(this.choice)})`;
  }
}

const n = fc.nat({ max: 59 });
// Work is done about as often as it is asked for, so that histories get somewhere.
const names = fc.constantFrom(
  ...Object.keys(verbs),
  "finishOne",
  "finishOne",
  "finishOne",
  "finishOne",
  "backUp",
  "backUp",
);
const step = fc.tuple(names, n, n, fc.boolean()).map(([name, a, b, flag]) => new Step(name, { a, b, flag }));
const first = (a: number) => new Step(a === 0 ? "createVolume" : "finishOne", { a: 0, b: 0, flag: false });

it(`every status, size and quota is what a reference of the rules says, whatever is done in whatever order (seed ${seed})`, {
  timeout: Math.max(120_000, runs * 20_000),
}, async () => {
  const config = {
    ...loadConfig({ DATABASE_URL: url, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" }),
    quotas: { ...limits, per_volume_gigabytes: -1, groups: -1 },
  };
  let histories = 0;
  let steps = 0;
  const property = fc.asyncProperty(fc.commands([step], { maxCommands: 40, size: "max" }), async (commands) => {
    const projectId = randomUUID().replaceAll("-", "");
    const principal = { userId: "model", projectId, roles: [], isAdmin: true, requestId: `req-${projectId}` };
    const real: Real = { database, config, principal };
    const reference: Reference = { volumes: [], snapshots: [], backups: [], operations: [], late: [], time: 0 };
    await fc.asyncModelRun(() => ({ model: reference, real }), [first(0), first(1), ...commands]);
    histories += 1;
    steps += [...commands].length;
    if (histories % 100 === 0) process.stdout.write(`model: ${histories} histories of ${steps} steps so far\n`);
  });
  const options =
    asked === undefined ? { interruptAfterTimeLimit: sampleMs, markInterruptAsFailure: false } : { endOnFailure: true };
  const numRuns = Math.ceil(runs / lanes);
  await Promise.all(
    Array.from({ length: lanes }, (_, lane) => fc.assert(property, { seed: seed + lane, numRuns, ...options })),
  );
  process.stdout.write(`model: seed ${seed}, ${histories} histories of ${steps} steps: 0 differ\n`);
});
