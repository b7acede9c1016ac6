import { randomUUID } from "node:crypto";
import {
  actorOf,
  type Config,
  type Database,
  getListedBackup,
  listBackups,
  type Principal,
  readDamagedParents,
  requestBackup,
  requestBackupDelete,
  requestRestore,
  showBackup,
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

const isRing = (text: string): boolean => text.includes("pg_notify");

/** What is sent to PostgreSQL from the beginning of `work` until its end, or until `enough` has been sent; a round trip each. */
async function sentBy(
  work: () => Promise<unknown>,
  enough: (texts: readonly string[]) => boolean = () => true,
): Promise<string[]> {
  // The connection and the planned statements of the first call are there for the second.
  const query = vi.spyOn(pg.Client.prototype, "query");
  await actAs(actorOf(principal), work);
  const texts = (): string[] =>
    query.mock.calls.map(([asked]) => (typeof asked === "string" ? asked : (asked as { text: string }).text));
  await vi.waitFor(() => {
    expect(enough(texts())).toBe(true);
    expect(query.mock.settledResults.every(({ type }) => type !== "incomplete")).toBe(true);
  });
  const sent = texts();
  query.mockRestore();
  return sent.map((text) => text.trim().replace(/\s+/g, " "));
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
 * A request costs PostgreSQL and the API what its round trips cost; that which wakes the dispatcher comes after the response. Whoever adds one raises its number here, and has looked at `npm run
 * bench -- requests`.
 */
it.each<[string, number, () => Promise<() => Promise<unknown>>]>([
  [
    "a full backup",
    2,
    async () => {
      const volumeId = await addVolume();
      return () => requestBackup(database, config, principal, { ...request, volumeId });
    },
  ],
  [
    "an incremental",
    9,
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
      return () => requestBackupDelete(database, config, principal, id);
    },
  ],
  [
    "one backup",
    1,
    async () => {
      const id = await addBackup(await addVolume());
      return () => showBackup(database, principal, { id, fields: ["name", "hasDependents", "metadata"] });
    },
  ],
  [
    "one backup with what is damaged below it",
    1,
    async () => {
      const id = await addBackup(await addVolume());
      return async () => readDamagedParents(database, await getListedBackup(database, principal, id));
    },
  ],
  [
    "a list",
    1,
    async () => {
      await addBackup(await addVolume());
      return () =>
        listBackups(database, principal, {
          fields: ["id", "metadata"],
          filters: [],
          allProjects: false,
          withCount: false,
          page,
        });
    },
  ],
])("%s takes %i round trips", async (_, count, prepare) => {
  const first = await prepare();
  await actAs(actorOf(principal), first);
  const sent = (await sentBy(await prepare())).filter((text) => !isRing(text));
  expect(sent.length, sent.join("\n")).toBe(count);
});

it("reads no column of a backup that is not asked for", async () => {
  const id = await addBackup(await addVolume());
  const one = await showBackup(database, principal, { id, fields: ["name"] });
  expect(Object.keys(one).toSorted()).toEqual(["name", "projectId"]);
  const asked = { filters: [], allProjects: false, withCount: false, page };
  for (const [fields, isRead] of [[["name"], false] as const, [["name", "metadata"], true] as const]) {
    const [list = ""] = await sentBy(() => listBackups(database, principal, { ...asked, fields }));
    expect(list.includes("metadata")).toBe(isRead);
  }
});

it.each([
  ["2026-12-01 02:20:58.123", "2026-12-01T02:20:58.123Z"],
  ["2026-12-01 02:20:58", "2026-12-01T02:20:58.000Z"],
  ["2026-12-01 02:20:58.1+05:30", "2026-11-30T20:50:58.100Z"],
  ["0099-01-01 00:00:00", "0099-01-01T00:00:00.000Z"],
  ["9999-12-31 23:59:59.999", "9999-12-31T23:59:59.999Z"],
  ["12026-12-01 02:20:58", "+012026-12-01T02:20:58.000Z"],
  ["0044-03-15 12:00:00 BC", "-000043-03-15T12:00:00.000Z"],
])("reads the time %s as %s", async (text, time) => {
  const id = await addBackup(await addVolume());
  await database.$executeRaw`UPDATE backups SET data_timestamp = ${text}::timestamptz WHERE id = ${id}::uuid`;
  const { dataTimestamp } = await showBackup(database, principal, { id, fields: ["dataTimestamp"] });
  expect(dataTimestamp.toISOString()).toBe(time);
});

it.each([
  [{ incremental: false }, "INSERT INTO backups"],
  [{ incremental: true }, "COMMIT"],
])("an accepted backup wakes the dispatcher, after its commit; a refused one does not (%o)", async (kind, last) => {
  const volumeId = await addVolume();
  await addBackup(volumeId);
  const ask = () => requestBackup(database, config, principal, { ...request, ...kind, volumeId });
  const rungAfterCommit = (texts: readonly string[]): boolean => {
    const committed = texts.findLastIndex((text) => text.includes(last));
    return committed >= 0 && texts.findLastIndex(isRing) > committed;
  };
  await sentBy(ask, rungAfterCommit);
  const refused = await sentBy(() => expect(ask()).rejects.toThrow("backing-up"));
  expect(refused.filter((text) => isRing(text) || text.includes("INSERT") || text.includes("COMMIT"))).toEqual([]);
});

it("a backup that does not fit under the quota, or whose volume is taken meanwhile, leaves nothing behind", async () => {
  const volumeId = await addVolume();
  const none = { ...config, quotas: { ...config.quotas, backups: 0 } };
  const unknown = { ...principal, projectId: randomUUID() };
  await database.volume.update({ where: { id: volumeId }, data: { projectId: unknown.projectId } });
  await expect(requestBackup(database, none, unknown, { ...request, volumeId })).rejects.toThrow(/backups/);
  expect((await requestBackup(database, config, unknown, { ...request, volumeId })).status).toBe("creating");
  const quota = await database.quota.findUniqueOrThrow({ where: { projectId: unknown.projectId } });
  expect(quota).toMatchObject({ backupsUsed: 1, backupGigabytesUsed: 1 });
  const both = await addVolume();
  const results = await Promise.allSettled(
    [1, 2, 3].map(() => requestBackup(database, config, principal, { ...request, volumeId: both })),
  );
  expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  expect(await database.backup.count({ where: { volumeId: both } })).toBe(1);
  expect(await database.operation.count({ where: { volumeId: both } })).toBe(1);
});
