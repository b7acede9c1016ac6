import type { AnswerOf } from "@tephra/wire";
import type { Command } from "commander";
import { formatBytes, renderTable } from "./output.ts";
import { openSession } from "./session.ts";

export function addWorkerCommands(program: Command): void {
  program
    .command("worker")
    .description("Worker processes (admins and observers only).")
    .command("list")
    .description("Those heard of within the last hour, and what they do.")
    .action(list);
}

async function list(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { workers } = await client.get<AnswerOf<"GET /ops/workers">>("/ops/workers");
  const rows = workers.map((worker) => [
    worker.id,
    worker.host,
    worker.version,
    worker.state,
    worker.heartbeat_at,
    `${worker.tasks.length}/${worker.slots}`,
    worker.rss_bytes === null ? null : formatBytes(worker.rss_bytes),
    worker.reaches.join(" "),
    Object.entries(worker.unreachable)
      .map(([name, why]) => `${name}: ${why}`)
      .join("; ") || null,
  ]);
  const head = ["ID", "HOST", "VERSION", "STATE", "HEARD OF", "TASKS", "MEMORY", "REACHES", "DOES NOT REACH"];
  print({ workers }, renderTable(head, rows));
}
