import { spawnSync } from "node:child_process";
import type { Database } from "@tephra/control";
import { openDatabase } from "@tephra/control/process";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";
import { crashAt } from "../kit/crash-at.ts";
import { createDatabase } from "../kit/instance.ts";

const stack = new AsyncDisposableStack();
let databaseUrl: string;
let database: Database;

beforeAll(async () => {
  databaseUrl = await createDatabase(inject("servers"), stack);
  database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

const program = `
  import { openDatabase } from "@tephra/control/process";
  import { inTransaction } from "@tephra/control/work";
  const database = openDatabase(process.argv[1]);
  const enter = (client) => client.schedule.create({ data: { name: process.argv[2], ranAt: new Date() } });
  await (process.argv[2].startsWith("change") ? enter(database) : inTransaction(database, enter));
  await database.$disconnect();`;

test.each([
  { point: "transaction.begin:1", kept: 0 },
  { point: "transaction.statement-1:1", kept: 0 },
  { point: "transaction.commit:1", kept: 0 },
  { point: "transaction.committed:1", kept: 1 },
  { point: "change.begin:1", kept: 0 },
  { point: "change.committed:1", kept: 1 },
])("a program told to die at $point has kept $kept rows", async ({ point, kept }) => {
  const args = ["--input-type=module", "--eval", program, databaseUrl, point];
  const { signal, stderr } = spawnSync(projectNode(), args, {
    cwd: `${root}/test`,
    env: { ...process.env, ...crashAt(point) },
    encoding: "utf8",
  });
  expect({ signal, stderr }).toEqual({ signal: "SIGKILL", stderr: "" });
  expect(await database.schedule.count({ where: { name: point } })).toBe(kept);
});
