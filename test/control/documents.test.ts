import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Database, Json } from "@tephra/control";
import { openDatabase } from "@tephra/control/process";
import {
  checkDocuments,
  claimTask,
  documents,
  failOperation,
  MalformedDocumentError,
  NewerDocumentError,
  readUnclaimed,
  readVerifyReports,
  type TaskKind,
  taskRanks,
} from "@tephra/control/work";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../kit/instance.ts";

const stack = new AsyncDisposableStack();
let database: Database;
beforeAll(async () => {
  database = openDatabase(await createDatabase(inject("servers"), stack));
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

interface Written {
  task: TaskKind;
  operation: string;
  input: Json;
  plan: Json;
  taskInput: Json;
  report: Json;
}

/** Rows as the release before versions wrote them, at the end of operations of every kind. */
const golden = JSON.parse(
  readFileSync(join(import.meta.dirname, "golden/documents-1.json"), "utf8"),
) as readonly Written[];

const parts = ["input", "plan", "taskInput"] as const;
type Part = (typeof parts)[number];

/** Both documents of an operation, and its task, as rows of their own. The task is due: what is due now may be so half a millisecond later. */
async function store(written: Written): Promise<{ operationId: string; taskId: string }> {
  const [operationId, taskId] = [randomUUID(), randomUUID()];
  await database.$executeRaw`
    INSERT INTO operations (id, kind, project_id, user_id, request_id, input, plan)
    VALUES (${operationId}::uuid, ${written.operation}, 'p', 'u', 'req-test', ${JSON.stringify(written.input)}::jsonb,
      ${written.plan === null ? null : JSON.stringify(written.plan)}::jsonb)`;
  await database.$executeRaw`
    INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, run_after, needs, input, report)
    VALUES (${taskId}::uuid, ${operationId}::uuid, ${written.task}, 0, 0, 'p', now(), now() - interval '1 second', '{}',
      ${JSON.stringify(written.taskInput)}::jsonb, ${written.report === null ? null : JSON.stringify(written.report)}::jsonb)`;
  return { operationId, taskId };
}

const claim = (taskId: string) => claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });

const claimed = ({ task, operation, input, plan, taskInput }: Written) =>
  ({ kind: task, input: taskInput, operation: { kind: operation, input, plan } }) as never;

const nameOf = ({ task, operation }: Written): string => `${task} of ${operation}`;

/** Absent from what earlier releases wrote. */
const optional = ["version", "family", "zlibEncoder", "encrypted", "staged", "overwrite", "md5Digest"];
/** Tasks of later phases read the plan, not what was requested. */
const laterKinds: readonly TaskKind[] = ["copy", "seal", "restore", "publish", "verify", "conclude-verify", "tidy"];

const keysRead = (written: Written): [Part, string][] =>
  parts
    .filter((part) => part !== "input" || !laterKinds.includes(written.task))
    .flatMap((part) => Object.keys(written[part] ?? {}).map((key): [Part, string] => [part, key]));

describe("plans, inputs and reports", () => {
  it("are read as the last release wrote them, for every kind of task", async () => {
    expect([...new Set(golden.map(({ task }) => task))].sort()).toEqual(Object.keys(taskRanks).sort());
    for (const written of golden) {
      const { taskId } = await store(written);
      const task = await claim(taskId);
      expect(task, nameOf(written)).toMatchObject({ input: written.taskInput, claim: 1 });
      expect([task?.operation.input, task?.operation.plan]).toEqual([written.input, written.plan]);
      if (task) expect(() => checkDocuments(task), nameOf(written)).not.toThrow();
      if (written.task === "copy") expect(documents.rangeReport(written.report)).toEqual(written.report);
      if (written.task === "verify") expect(documents.verifyReport(written.report)).toEqual(written.report);
    }
  });

  it("are read without what earlier releases did not write, and keep what a later one has added", () => {
    for (const written of golden) {
      for (const part of parts) {
        const whole = { ...(written[part] as object | null) };
        if (written[part] === null) continue;
        const old = Object.fromEntries(Object.entries(whole).filter(([key]) => !optional.includes(key)));
        expect(() => checkDocuments(claimed({ ...written, [part]: old })), nameOf(written)).not.toThrow();
        const added = { ...whole, version: 1, added: { by: "a later release" } };
        expect(() => checkDocuments(claimed({ ...written, [part]: added })), nameOf(written)).not.toThrow();
      }
    }
    const [copy] = golden.filter(({ task }) => task === "copy");
    const added = { ...(copy?.plan as object), added: 1 } as Json;
    expect(documents.backupPlan(added)).toEqual(added);
  });

  it("of a newer version are left alone: no claim, no attempt, whatever the kind of task", async () => {
    for (const written of golden) {
      for (const part of parts.filter((each) => written[each] !== null)) {
        const newer = { ...written, [part]: { ...(written[part] as object), version: 2 } };
        const { operationId, taskId } = await store(newer);
        expect(await claim(taskId), `${part}: ${nameOf(written)}`).toBeNull();
        expect(await readUnclaimed(database, taskId)).toEqual({ operationId, kind: written.task, forNewer: true });
        expect(await database.task.findUniqueOrThrow({ where: { id: taskId } })).toMatchObject({
          state: "ready",
          claim: 0,
          attempts: 0,
        });
        expect((await database.operation.findUniqueOrThrow({ where: { id: operationId } })).state).toBe("queued");
      }
    }
  });

  it("with anything missing or of another type are refused with what is wrong, whatever the kind of task", () => {
    let refused = 0;
    for (const written of golden) {
      for (const [part, key] of keysRead(written)) {
        const document = written[part] as Record<string, Json>;
        const { [key]: _, ...less } = document;
        const broken: object[] = [{ ...document, [key]: [[]] }];
        if (!optional.includes(key)) broken.push(less);
        for (const each of broken) {
          const check = () => checkDocuments(claimed({ ...written, [part]: each as Json }));
          expect(check, `${part}.${key}: ${nameOf(written)}`).toThrow(MalformedDocumentError);
          refused += 1;
        }
      }
    }
    expect(refused).toBeGreaterThan(200);
  });

  it.each(["2", true, [2], {}, 0, -1, null].map((version) => ({ version })))(
    "with $version as version are malformed, not newer",
    async ({ version }) => {
      for (const written of golden.filter(({ task }) => task === "copy").slice(0, 1)) {
        const { taskId } = await store({ ...written, plan: { ...(written.plan as object), version } as Json });
        const task = await claim(taskId);
        if (task === null) throw new Error("not claimed");
        expect(() => checkDocuments(task)).toThrow(MalformedDocumentError);
      }
    },
  );

  it("that cannot be read do not keep an operation from ending, with the reason given", async () => {
    for (const written of golden) {
      for (const document of ["nonsense", { chain: 7 }, { version: 2 }] as const) {
        const plan = written.plan === null ? null : document;
        const { operationId } = await store({ ...written, input: document, plan });
        await failOperation(database, operationId, { reason: "The plan cannot be read." });
        expect(
          await database.operation.findUniqueOrThrow({ where: { id: operationId } }),
          nameOf(written),
        ).toMatchObject({ state: "failed", failReason: "The plan cannot be read." });
      }
    }
  });

  it("of ranges are refused when they are summed up, too", async () => {
    const [verify] = golden.filter(({ task }) => task === "verify");
    if (!verify) throw new Error("no golden verification");
    const summed = async (report: Json) => {
      const { operationId } = await store({ ...verify, report });
      return readVerifyReports(database, operationId);
    };
    expect(await summed(verify.report)).toMatchObject({ damaged: (verify.report as { damaged: [] }).damaged });
    const report = verify.report as Record<string, Json>;
    await expect(summed({ ...report, objects: "7" })).rejects.toBeInstanceOf(MalformedDocumentError);
    await expect(summed({ ...report, damaged: null })).rejects.toBeInstanceOf(MalformedDocumentError);
    await expect(summed({ ...report, version: 2 })).rejects.toBeInstanceOf(NewerDocumentError);
  });
});
