import { randomUUID } from "node:crypto";
import {
  actorOf,
  type Config,
  type Database,
  getBackup,
  listBackups,
  type Principal,
  requestBackup,
  requestBackupDelete,
  requestRestore,
} from "@tephra/control";
import { actAs } from "@tephra/control/process";
import pg from "pg";
import { afterAll, afterEach, beforeAll, expect, it, vi } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  ({ database, config } = await openControl(stack));
});
afterEach(() => vi.restoreAllMocks());
afterAll(() => stack.disposeAsync());

const principal: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };

/** What is sent to PostgreSQL while `work` runs, a round trip each. */
async function sentBy(work: () => Promise<unknown>): Promise<string[]> {
  // The connection and the planned statements of the first call are there for the second.
  const query = vi.spyOn(pg.Client.prototype, "query");
  await actAs(actorOf(principal), work);
  await vi.waitFor(() => expect(query.mock.settledResults.every(({ type }) => type !== "incomplete")).toBe(true));
  const texts = query.mock.calls.map(([asked]) =>
    typeof asked === "string" ? asked : (asked as { text: string }).text,
  );
  query.mockRestore();
  return texts.map((text) => text.trim().replace(/\s+/g, " "));
}

async function addVolume(): Promise<string> {
  const id = randomUUID();
  const owner = { projectId: "p", userId: "u", sizeGib: 1, status: "available", availabilityZone: "nova" };
  await database.volume.create({ data: { ...owner, id, sizeBytes: 4096n, backend: "files" } });
  return id;
}

async function addBackup(volumeId: string): Promise<string> {
  const id = randomUUID();
  const owner = { projectId: "p", userId: "u", sizeGib: 1, status: "available", volumeId };
  const stored = { repository: "main", container: "c", serviceMetadata: "p", volumeBytes: 4096n };
  await database.backup.create({ data: { ...owner, ...stored, id, dataTimestamp: new Date() } });
  return id;
}

const request = {
  ...{ name: null, description: null, metadata: {}, availabilityZone: null, snapshotId: null, container: null },
  ...{ incremental: false, force: false },
};
const page: Parameters<typeof listBackups>[2]["page"] = {
  sort: [{ key: "createdAt", direction: "desc" }],
  limit: 50,
  offset: 0,
};

/**
 * A request costs PostgreSQL and the API what its round trips cost. Whoever adds one raises its number here, and has looked at `npm run
 * bench -- requests`.
 */
it.each<[string, number, () => Promise<() => Promise<unknown>>]>([
  [
    "a full backup",
    7,
    async () => {
      const volumeId = await addVolume();
      return () => requestBackup(database, config, principal, { ...request, volumeId });
    },
  ],
  [
    "an incremental",
    11,
    async () => {
      const volumeId = await addVolume();
      await addBackup(volumeId);
      return () => requestBackup(database, config, principal, { ...request, volumeId, incremental: true });
    },
  ],
  [
    "a restore to a new volume",
    9,
    async () => {
      const backupId = await addBackup(await addVolume());
      return () => requestRestore(database, config, principal, { backupId, volumeId: null, name: null });
    },
  ],
  [
    "a deletion",
    10,
    async () => {
      const id = await addBackup(await addVolume());
      return () => requestBackupDelete(database, principal, id);
    },
  ],
  [
    "one backup",
    1,
    async () => {
      const id = await addBackup(await addVolume());
      return () => getBackup(database, principal, id);
    },
  ],
  [
    "a list",
    3,
    async () => {
      await addBackup(await addVolume());
      return () => listBackups(database, principal, { filters: [], allProjects: false, withCount: false, page });
    },
  ],
])("%s takes %i round trips", async (_, count, prepare) => {
  const first = await prepare();
  await actAs(actorOf(principal), first);
  const sent = await sentBy(await prepare());
  expect(sent.length, sent.join("\n")).toBe(count);
});
