import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { root } from "../../../scripts/bootstrap.mjs";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, auth, finishBackup, startApiOnly, type Who } from "../api-only.ts";

const config = {
  auth,
  log_level: "warn",
};

it("is cancelled by who owns it, once, unless that would leave things half done", async () => {
  await using instance = await startApiOnly({ config });
  const ask = (who: Who, method: string, path: string, body?: unknown) =>
    instance.request(method, path, body, { "x-auth-token": who });
  const cancel = (who: Who, id: string) => ask(who, "POST", `/ops/operations/${id}/cancel`, {});
  const actionOf = async (who: Who, id: string) =>
    (await ask(who, "GET", `/ops/operations/${id}`)).body.operation.actions[0];
  const refusal = async (who: Who, id: string) => {
    const { status, body } = await cancel(who, id);
    return [status, Object.values<{ message: string }>(body)[0]?.message];
  };
  const operationOf = async (column: string, id: string, kind: string): Promise<string> => {
    const rows = await instance.sql(
      `SELECT id FROM operations WHERE ${column} = $1 AND kind = $2 ORDER BY created_at DESC`,
      [id, kind],
    );
    return rows[0].id;
  };
  const volume = randomUUID();
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', 'v', 'available', 1, 1073741824, 'files', 'nova')`,
    [volume, a],
  );
  const begin = async (): Promise<{ backup: string; operation: string }> => {
    const made = await ask("member", "POST", `/v3/${a}/backups`, { backup: { volume_id: volume } });
    expect(made.status, made.text).toBe(202);
    const backup = made.body.backup.id;
    return { backup, operation: await operationOf("backup_id", backup, "backup-create") };
  };

  const first = await begin();
  expect(await actionOf("member", first.operation)).toEqual({ name: "cancel", allowed: true, why: null });
  expect(await actionOf("reader", first.operation)).toMatchObject({
    allowed: false,
    why: "Your role may not cancel operations.",
  });
  expect((await cancel("reader", first.operation)).status).toBe(403);
  expect((await cancel("stranger", first.operation)).status).toBe(404);
  expect((await cancel("member", randomUUID())).status).toBe(404);
  expect((await cancel("member", "nope")).status).toBe(404);
  expect(await instance.sql("SELECT state FROM operations")).toEqual([{ state: "queued" }]);

  const done = await cancel("member", first.operation);
  expect([done.status, done.body]).toEqual([202, { operation: { id: first.operation } }]);
  const [after] = await instance.sql(
    `SELECT o.state, o.fail_reason, b.status AS backup, b.fail_reason AS why, v.status AS volume,
       (SELECT string_agg(DISTINCT t.state, ',') FROM tasks t WHERE t.operation_id = o.id) AS tasks
     FROM operations o JOIN backups b ON b.id = o.backup_id JOIN volumes v ON v.id = o.volume_id WHERE o.id = $1`,
    [first.operation],
  );
  const reason = "Cancelled on request.";
  expect(after).toEqual({
    ...{
      state: "cancelled",
      fail_reason: reason,
      backup: "error",
      why: reason,
      volume: "available",
      tasks: "cancelled",
    },
  });
  expect(await refusal("member", first.operation)).toEqual([409, "It has ended: cancelled."]);
  expect(await actionOf("member", first.operation)).toMatchObject({ allowed: false, why: "It has ended: cancelled." });
  const { audit } = (await ask("admin", "GET", `/ops/audit?operation_id=${first.operation}&resource=backup`)).body;
  expect(audit[0]).toMatchObject({ to: "error", user_id: "user-of-member", reason });

  // By the command line; the volume is free again.
  const second = await begin();
  const command = ["operation", "cancel", second.operation, "--url", instance.url, "--token", "member", "--json"];
  const { status, json } = await startTephra(command).finished;
  expect([status, json]).toEqual([0, { operation: { id: second.operation, state: "cancelled" } }]);

  const { version } = JSON.parse(readFileSync(join(root, "apps/cli/package.json"), "utf8"));
  expect(await startTephra(["--version"]).finished).toMatchObject({ status: 0, stdout: `${version}\n`, stderr: "" });

  const third = await begin();
  await instance.sql("UPDATE operations SET state = 'succeeded', finished_at = now() WHERE id = $1", [third.operation]);
  await finishBackup(instance, third.backup);
  expect((await ask("admin", "POST", `/ops/backups/${third.backup}/verify`, {})).status).toBe(202);
  const verification = await operationOf("backup_id", third.backup, "backup-verify");
  expect(await refusal("member", verification)).toEqual([409, "Only an admin may cancel it."]);
  expect((await cancel("admin", verification)).status).toBe(202);

  const restore = async () => {
    const body = { restore: { volume_id: volume } };
    const asked = await ask("member", "POST", `/v3/${a}/backups/${third.backup}/restore`, body);
    expect(asked.status, asked.text).toBe(202);
    return operationOf("backup_id", third.backup, "backup-restore");
  };
  const late = await restore();
  await instance.sql(
    `INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at) VALUES (gen_random_uuid(), $1, 'publish', 0, 1, $2, now())`,
    [late, a],
  );
  expect(await refusal("member", late)).toEqual([409, "What was restored is being put in its place."]);
  await instance.sql("DELETE FROM tasks WHERE kind = 'publish'");
  expect((await cancel("member", late)).status).toBe(202);
  expect(await instance.sql("SELECT status FROM backups WHERE id = $1", [third.backup])).toEqual([
    { status: "available" },
  ]);

  expect((await ask("member", "DELETE", `/v3/${a}/backups/${third.backup}`)).status).toBe(202);
  const deletion = await operationOf("backup_id", third.backup, "backup-delete");
  expect(await refusal("member", deletion)).toEqual([409, "A deletion is not taken back half-way."]);
  const part = randomUUID();
  await instance.sql(
    `INSERT INTO operations (id, kind, state, project_id, user_id, request_id, parent_id) VALUES ($1, 'backup-create', 'queued', $2, 'u', 'r', $3)`,
    [part, a, first.operation],
  );
  expect(await refusal("member", part)).toEqual([
    409,
    `It is a part of the operation ${first.operation}: cancel that.`,
  ]);
});
