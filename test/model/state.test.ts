import { randomUUID } from "node:crypto";
import { type Database, loadConfig, openDatabase } from "@tephra/control";
import fc from "fast-check";
import { afterAll, beforeAll, expect, inject, it } from "vitest";
import { createDatabase } from "../harness/instance.ts";
import { limits, type Reference, usage } from "./reference.ts";
import { type Choice, type Real, verbs } from "./verbs.ts";

/** Without a number of runs: as many as there is time for. */
const asked = process.env["TEPHRA_MODEL_RUNS"];
const runs = Number(asked ?? 60);
const sampleMs = 15_000;
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? Math.floor(Math.random() * 1e9));

const stack = new AsyncDisposableStack();
let database: Database;
let url: string;
beforeAll(async () => {
  url = await createDatabase(inject("servers"), stack);
  database = openDatabase(url, 4);
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

/** Everything that a project has must be as the reference says. */
async function compare(reference: Reference, { database, principal }: Real): Promise<void> {
  const where = { projectId: principal.projectId };
  const [volumes, snapshots, backups, operations, quota] = await Promise.all([
    database.volume.findMany({ where, include: { attachments: true } }),
    database.snapshot.findMany({ where }),
    database.backup.findMany({ where }),
    database.operation.findMany({ where: { ...where, state: { in: ["queued", "running"] } } }),
    database.quota.findUnique({ where }),
  ]);
  const byId = (rows: readonly (readonly unknown[])[]) =>
    [...rows].sort((x, y) => (String(x[0]) < String(y[0]) ? -1 : 1));
  const there = {
    volumes: byId(volumes.map((row) => [row.id, row.status, row.attachments.length > 0, row.sizeGib])),
    snapshots: byId(snapshots.map((row) => [row.id, row.status])),
    backups: byId(backups.map((row) => [row.id, row.status, row.deletedAt !== null])),
    operations: byId(operations.map((row) => [row.id, row.kind])),
    usage: {
      volumes: quota?.volumesUsed ?? 0,
      snapshots: quota?.snapshotsUsed ?? 0,
      gigabytes: quota?.gigabytesUsed ?? 0,
      backups: quota?.backupsUsed ?? 0,
      backup_gigabytes: quota?.backupGigabytesUsed ?? 0,
    },
  };
  expect(there).toEqual({
    volumes: byId(reference.volumes.map((row) => [row.id, row.status, row.attached, row.size])),
    snapshots: byId(reference.snapshots.map((row) => [row.id, row.status])),
    backups: byId(reference.backups.map((row) => [row.id, row.status, row.status === "deleted"])),
    operations: byId(reference.operations.map((row) => [row.id, row.kind])),
    usage: usage(reference),
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
    quotas: { ...limits, per_volume_gigabytes: -1 },
  };
  let histories = 0;
  let steps = 0;
  const property = fc.asyncProperty(fc.commands([step], { maxCommands: 40, size: "max" }), async (commands) => {
    const projectId = randomUUID().replaceAll("-", "");
    const principal = { userId: "model", projectId, roles: [], isAdmin: true, requestId: `req-${projectId}` };
    const real: Real = { database, config, principal };
    const reference: Reference = { volumes: [], snapshots: [], backups: [], operations: [], late: [] };
    await fc.asyncModelRun(() => ({ model: reference, real }), [first(0), first(1), ...commands]);
    histories += 1;
    steps += [...commands].length;
    if (histories % 100 === 0) process.stdout.write(`model: ${histories} histories of ${steps} steps so far\n`);
  });
  await fc.assert(property, {
    seed,
    numRuns: runs,
    ...(asked === undefined
      ? { interruptAfterTimeLimit: sampleMs, markInterruptAsFailure: false }
      : { endOnFailure: true }),
  });
  process.stdout.write(`model: seed ${seed}, ${histories} histories of ${steps} steps: 0 differ\n`);
});
