import { randomUUID } from "node:crypto";
import type { Database } from "@tephra/control";
import { loadConfig } from "@tephra/control/process";
import { claimTask, distrustChanges, inTransaction, planBackup, startOperation } from "@tephra/control/work";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;
beforeAll(async () => {
  ({ databaseUrl, database } = await openControl(stack));
});
afterAll(() => stack.disposeAsync());

const owner = { projectId: "p", userId: "u", sizeGib: 1 };

async function makeVolume(): Promise<string> {
  const volume = { ...owner, status: "available", sizeBytes: 4096n, backend: "files", availabilityZone: "nova" };
  return (await database.volume.create({ data: { ...volume, id: randomUUID() } })).id;
}

async function makeSnapshot(volumeId: string): Promise<string> {
  const snapshot = { projectId: "p", userId: "u", volumeId, status: "available", sizeGib: 1, sizeBytes: 4096n };
  return (await database.snapshot.create({ data: { ...snapshot, id: randomUUID() } })).id;
}

async function makeBackup(
  volumeId: string,
  more: { status: string; parentId?: string; baseSnapshotId?: string | null; believedInRow?: number },
): Promise<string> {
  const backup = { ...owner, volumeId, repository: "main", dataTimestamp: new Date(), ...more };
  return (await database.backup.create({ data: { ...backup, id: randomUUID() } })).id;
}

/** What the plan of an incremental on `parentId` says about the storage's word. */
async function changesPlanned(volumeId: string, parentId: string, tellsChanges = true): Promise<unknown> {
  const backupId = await makeBackup(volumeId, { status: "creating", parentId });
  const principal = { userId: "u", requestId: "req-test" };
  const task = { kind: "plan-backup" as const, needs: [] };
  const started = { kind: "backup-create" as const, projectId: "p", volumeId, backupId, input: {}, task };
  const operationId = await inTransaction(database, (tx) => startOperation(tx, principal, started));
  const { id: taskId } = await database.task.findFirstOrThrow({ where: { operationId } });
  const claimed = await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });
  if (claimed === null) throw new Error("not claimed");
  const environment = { DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" };
  const plan = await planBackup(database, loadConfig(environment), claimed.operation, async () => ({
    service: "posix",
    defaultContainer: (id) => id,
    defaultPrefix: (input) => input.backupId,
    tellsChanges,
    canFreezeCheaply: async () => true,
  }));
  return plan.changes;
}

describe("what has changed since a snapshot is believed", () => {
  it("where the parent has the bytes of that snapshot, and it is there", async () => {
    const volume = await makeVolume();
    const since = await makeSnapshot(volume);
    const parent = await makeBackup(volume, { status: "available", baseSnapshotId: since, believedInRow: 28 });
    expect(await changesPlanned(volume, parent)).toEqual({ since, inRow: 29 });
  });

  it("not by the thirtieth backup in a row", async () => {
    const volume = await makeVolume();
    const since = await makeSnapshot(volume);
    const parent = await makeBackup(volume, { status: "available", baseSnapshotId: since, believedInRow: 29 });
    expect(await changesPlanned(volume, parent)).toBeUndefined();
  });

  it("not where the driver cannot tell, nor of a parent whose bytes are those of no snapshot", async () => {
    const volume = await makeVolume();
    const since = await makeSnapshot(volume);
    const parent = await makeBackup(volume, { status: "available", baseSnapshotId: since });
    expect(await changesPlanned(volume, parent, false)).toBeUndefined();
    expect(await changesPlanned(volume, await makeBackup(volume, { status: "available" }))).toBeUndefined();
  });

  it("not when that snapshot is gone, or of another volume", async () => {
    const [volume, other] = [await makeVolume(), await makeVolume()];
    for (const baseSnapshotId of [randomUUID(), await makeSnapshot(other)]) {
      const parent = await makeBackup(volume, { status: "available", baseSnapshotId });
      expect(await changesPlanned(volume, parent)).toBeUndefined();
    }
  });

  it("never again after one untruth about the volume", async () => {
    const volume = await makeVolume();
    const since = await makeSnapshot(volume);
    const parent = await makeBackup(volume, { status: "available", baseSnapshotId: since });
    await distrustChanges(database, volume);
    expect(await changesPlanned(volume, parent)).toBeUndefined();
  });
});
