import type { AnswerOf } from "@tephra/wire";
import type { Command } from "commander";
import { formatSeconds, renderFields, renderTable } from "./output.ts";
import { openSession } from "./session.ts";

/** What is where, and what waits. */
export function addLookCommands(program: Command): void {
  program
    .command("search")
    .description("Find volumes, machines, backups, snapshots, policies and operations.")
    .argument("<text>", "how an id or a name begins (3 characters or more), or the id of a request")
    .action(search);
  program
    .command("queue")
    .description("What waits and runs, of whom, and why the oldest waits (admins and observers only).")
    .action(queue);
}

async function search(text: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const query = new URLSearchParams({ q: text });
  const { hits } = await client.get<AnswerOf<"GET /ops/search">>(`/ops/search?${query}`);
  const rows = hits.map(({ type, id, name, status, project_id }) => [type, id, name, status, project_id]);
  print({ hits }, renderTable(["WHAT", "ID", "NAME", "STATUS", "PROJECT"], rows));
}

async function queue(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const document = await client.get<AnswerOf<"GET /ops/queue">>("/ops/queue");
  const { postgres, redis, drift } = document.queue;
  const { oldest } = postgres;
  const agrees = drift.agrees === null ? "not known: Redis does not answer" : drift.agrees ? "yes" : "no";
  const fields = {
    ...postgres.by_state,
    "oldest waits": formatSeconds(postgres.oldest_seconds),
    operation: oldest?.operation.id ?? null,
    why: oldest?.why?.text ?? null,
    "of a project at most": postgres.cap,
    "Redis agrees": agrees,
    overdue: drift.overdue,
  };
  const counts = ["READY", "DISPATCHED", "RUNNING", "BLOCKED"];
  const kinds = postgres.by_kind.map((row) => [row.kind, row.ready, row.dispatched, row.running, row.blocked]);
  const projects = postgres.by_project.map((row) => [
    row.project_id,
    row.ready,
    row.dispatched,
    row.running,
    row.blocked,
  ]);
  const queues = redis.queues.map((row) => [row.name, row.waiting, row.active, row.delayed]);
  const tables = [
    renderTable(["KIND", ...counts], kinds),
    renderTable(["PROJECT", ...counts], projects),
    renderTable(["QUEUE IN REDIS", "WAITING", "ACTIVE", "DELAYED"], queues),
  ];
  print(document, [renderFields(fields), ...tables].join("\n"));
}
