import type { AnswerOf } from "@tephra/wire";
import { type Command, Option } from "commander";
import { renderFields, renderTable } from "./output.ts";
import { openSession, positiveInteger } from "./session.ts";

const states = ["dead", "pending", "delivered"];

export function addNotificationCommands(program: Command): void {
  const notification = program
    .command("notification")
    .description("Delivery of notifications about backups; only admins may retry them, and observers list them.");
  notification
    .command("list")
    .description("List deliveries, newest first: undeliverable (dead) ones unless --state is given.")
    .addOption(new Option("--state <state>").choices(states).default("dead"))
    .option("--limit <count>", "Maximum number of entries.", positiveInteger, 100)
    .action(list);
  notification
    .command("retry")
    .description("Retry undeliverable notifications, starting with their first attempt.")
    .argument("<id...>")
    .action(retry);
}

async function list(options: { state: string; limit: number }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const query = new URLSearchParams({ state: options.state, limit: String(options.limit) });
  const { notifications } = await client.get<AnswerOf<"GET /ops/notifications">>(`/ops/notifications?${query}`);
  const rows = notifications.map((n) => [n.id, n.event_type, n.target, n.attempts, n.last_error ?? "", n.created_at]);
  print({ notifications }, renderTable(["ID", "EVENT", "TARGET", "ATTEMPTS", "REASON", "CREATED"], rows));
}

async function retry(ids: string[], _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  for (const id of ids) await client.post(`/ops/notifications/${encodeURIComponent(id)}/retry`, {});
  print(
    { notifications: ids.map((id) => ({ id, state: "pending" })) },
    ids.map((id) => renderFields({ id, state: "pending" })).join("\n"),
  );
}
