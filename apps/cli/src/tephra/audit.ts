import { pipeline } from "node:stream/promises";
import type { AnswerOf } from "@tephra/wire";
import { type Command, Option } from "commander";
import { renderTable } from "./output.ts";
import { openSession, positiveInteger } from "./session.ts";

interface Options {
  resource?: string;
  of?: string;
  owner?: string;
  user?: string;
  worker?: string;
  request?: string;
  operation?: string;
  since?: string;
  until?: string;
  limit: number;
  all?: boolean;
}

const resources = [
  "backup",
  "volume",
  "snapshot",
  "group",
  "group_snapshot",
  "attachment",
  "transfer",
  "image_transfer",
  "operation",
  "session",
  "alert",
];

export function addAuditCommand(program: Command): void {
  program
    .command("audit")
    .description("Audit log of status changes, newest first (admins and observers only).")
    .addOption(new Option("--resource <kind>").choices(resources))
    .option("--of <id>", "Only entries of the resource with this id.")
    .option("--owner <project>", "Only entries of resources of this project.")
    .option("--user <id>", "Only changes requested by this user.")
    .option("--worker <id>")
    .option("--request <id>")
    .option("--operation <id>")
    .option("--since <time>", "Inclusive; ISO 8601, with a time zone.")
    .option("--until <time>", "Exclusive; ISO 8601, with a time zone.")
    .option("--limit <count>", "Maximum number of entries.", positiveInteger, 100)
    .option("--all", "All that match, one line of JSON each, as they come: to keep them elsewhere.")
    .action(list);
}

async function list(options: Options, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const filters = {
    resource: options.resource,
    resource_id: options.of,
    project_id: options.owner,
    user_id: options.user,
    worker_id: options.worker,
    request_id: options.request,
    operation_id: options.operation,
    since: options.since,
    until: options.until,
    limit: String(options.limit),
  };
  const given = Object.entries(filters).filter((filter): filter is [string, string] => filter[1] !== undefined);
  if (options.all === true) {
    const lines = await client.getLines(`/ops/audit?${new URLSearchParams(given)}`);
    return pipeline(lines, process.stdout, { end: false });
  }
  const { audit } = await client.get<AnswerOf<"GET /ops/audit">>(`/ops/audit?${new URLSearchParams(given)}`);
  const rows = audit.map((entry) => [
    entry.at,
    entry.resource,
    entry.resource_id,
    `${entry.from ?? "(new)"} → ${entry.to}`,
    entry.worker_id ?? entry.user_id ?? entry.actor,
    entry.request_id ?? "",
    entry.reason ?? "",
  ]);
  print({ audit }, renderTable(["AT", "RESOURCE", "ID", "STATUS", "BY", "REQUEST", "REASON"], rows));
}
