import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, auth, startApiOnly } from "../api-only.ts";

const config = {
  auth,
  // What is written here stays as it is.
  tasks: { unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000, reconcile_ms: 3_600_000 },
  log_level: "warn",
};

it("says why an operation waits, by the rows of tasks and workers", async () => {
  await using instance = await startApiOnly({ config });
  const ask = (who: "member" | "observer", method: string, path: string, body?: unknown) =>
    instance.request(method, path, body, { "x-auth-token": who });
  const begin = async (): Promise<string> => {
    const volume = randomUUID();
    await instance.sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
       VALUES ($1, $2, 'u', 'v', 'available', 1, 1073741824, 'files', 'nova')`,
      [volume, a],
    );
    const made = await ask("member", "POST", `/v3/${a}/backups`, { backup: { volume_id: volume } });
    expect(made.status, made.text).toBe(202);
    const [row] = await instance.sql("SELECT id FROM operations WHERE backup_id = $1", [made.body.backup.id]);
    return row.id;
  };
  const whyOf = async (id: string, who: "member" | "observer" = "observer") => {
    const { status, body, text } = await ask(who, "GET", `/ops/operations/${id}`);
    expect(status, text).toBe(200);
    return body.operation.why;
  };
  const [first, second] = [await begin(), await begin()];
  expect(await whyOf(first)).toMatchObject({ code: "queue", text: expect.stringMatching(/^It is the next/) });
  expect(await whyOf(second)).toMatchObject({
    code: "queue",
    text: "It is number 2 in the queue: 1 operation is ahead.",
    since: expect.any(String),
  });

  const worker = "UPDATE workers SET reaches = $1, unreachable = $2 WHERE id = 'silent'";
  await instance.sql(worker, ["{backend:files}", { "repository:main": "The mount is gone." }]);
  expect(await whyOf(first)).toMatchObject({
    code: "no_worker",
    text: "No worker reaches what it needs (repository main). here: The mount is gone.",
    subject: "repository:main",
  });
  expect((await whyOf(first, "member")).text).toBe(
    "No worker reaches what it needs (repository main). The mount is gone.",
  );
  const command = ["operation", "show", first, "--url", instance.url, "--token", "member"];
  const shown = await startTephra(command).finished;
  expect(shown.stdout).toContain("The mount is gone.");
  await instance.sql(worker, ["{repository:main,backend:files}", {}]);

  await instance.sql("INSERT INTO disabled_services (\"binary\", host) VALUES ('cinder-backup', 'here')");
  expect(await whyOf(first)).toMatchObject({ code: "disabled_hosts", subject: "here" });
  expect((await whyOf(first, "member")).text).not.toContain("here");
  await instance.sql("DELETE FROM disabled_services");

  const tasks = (set: string) => instance.sql(`UPDATE tasks SET ${set} WHERE operation_id = $1`, [first]);
  await tasks("attempts = 1, fail_reason = 'The store said no.', run_after = now() + interval '1 hour'");
  expect(await whyOf(first)).toMatchObject({
    code: "backing_off",
    text: expect.stringMatching(/^Try 1 of 3 has failed, next try at 20.*Z: The store said no\.$/),
  });

  await instance.sql("UPDATE operations SET state = 'running', started_at = now() WHERE id = $1", [first]);
  await tasks(
    "state = 'running', worker_id = 'silent', lease_until = now() + interval '1 hour', progressed_at = now()",
  );
  expect(await whyOf(first)).toMatchObject({ code: "fine", text: "1 task runs." });
  await tasks("kind = 'copy', progressed_at = now() - interval '5 minutes'");
  expect(await whyOf(first)).toMatchObject({ code: "no_progress", subject: "silent", since: expect.any(String) });
  expect(await whyOf(first, "member")).toMatchObject({ code: "no_progress", subject: null });
  await tasks("lease_until = now() - interval '1 second'");
  expect(await whyOf(first)).toMatchObject({ code: "taking_over", subject: "silent" });
  await tasks("state = 'blocked', lease_until = NULL, worker_id = NULL");
  expect(await whyOf(first)).toMatchObject({ code: "waits_for" });

  await instance.sql("UPDATE operations SET state = 'failed', finished_at = now() WHERE id = $1", [first]);
  await tasks("state = 'cancelled'");
  expect(await whyOf(first)).toBeNull();
});
