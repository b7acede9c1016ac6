import type { Command } from "commander";
import { renderFields, renderTable } from "./output.ts";
import { openSession } from "./session.ts";

interface Message {
  id: string;
  event_id: string;
  user_message: string;
  message_level: string;
  resource_type: string;
  resource_uuid: string;
  request_id: string;
  created_at: string;
  guaranteed_until: string;
}

export function addMessageCommands(program: Command): void {
  const message = program.command("message").description("Error messages about the project's backups.");
  message.command("list").description("newest first").option("--resource <id>", "about this backup").action(list);
  message.command("show").argument("<id>").action(show);
  message.command("delete").argument("<id>").action(remove);
}

async function list(options: { resource?: string }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const filter = options.resource === undefined ? "" : `?resource_uuid=${encodeURIComponent(options.resource)}`;
  const messages = await client.listAll<Message>(client.block(`/messages${filter}`), "messages");
  const rows = messages.map((m) => [m.id, m.user_message, m.resource_uuid, m.created_at]);
  print({ messages }, renderTable(["ID", "MESSAGE", "BACKUP", "CREATED"], rows));
}

async function show(id: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { message } = await client.get<{ message: Message }>(client.block(`/messages/${encodeURIComponent(id)}`));
  const fields = {
    id: message.id,
    message: message.user_message,
    event: message.event_id,
    level: message.message_level,
    backup: message.resource_uuid,
    request: message.request_id,
    created: message.created_at,
    "kept until": message.guaranteed_until,
  };
  print({ message }, renderFields(fields));
}

async function remove(id: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  await client.delete(client.block(`/messages/${encodeURIComponent(id)}`));
  print({ message: { id, status: "deleted" } }, renderFields({ id, status: "deleted" }));
}
