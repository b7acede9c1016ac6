import type { Alert, AnswerOf, BodyOf } from "@tephra/wire";
import { type Command, InvalidArgumentError } from "commander";
import { renderFields, renderTable } from "./output.ts";
import { openSession } from "./session.ts";

export function addAlertCommands(program: Command): void {
  const alert = program.command("alert").description("What asks for somebody. Admins can snooze what they know of.");
  alert.command("list").description("the worst first, with those that are snoozed").action(list);
  alert
    .command("snooze")
    .description("Set an alert aside for a while: it is shown as snoozed, and tephra_alerts in /metrics leaves it out.")
    .argument("<code>", "such as volumes_late")
    .argument("[subject]", "the worker, repository, project or backend that it is about, where it is about one")
    .requiredOption("--for <duration>", "How long: 90m, 8h or 7d; at most 90d.", parseDuration)
    .requiredOption("--reason <text>")
    .action(snooze);
  alert
    .command("unsnooze")
    .description("Have it told again.")
    .argument("<code>")
    .argument("[subject]")
    .action(unsnooze);
}

const unitMs: Readonly<Record<string, number>> = { m: 60_000, h: 3_600_000, d: 86_400_000 };

/** @returns milliseconds */
function parseDuration(text: string): number {
  const [, number, unit = ""] = /^(\d+)([mhd])$/.exec(text) ?? [];
  const each = unitMs[unit];
  if (number === undefined || each === undefined)
    throw new InvalidArgumentError("Expected something like 90m, 8h or 7d.");
  return Number(number) * each;
}

/** An alert without a subject has `-` in its place. */
const pathOf = (code: string, subject = "-"): string =>
  `/ops/alerts/${encodeURIComponent(code)}/${encodeURIComponent(subject)}/snooze`;

/** For people: the worst first. */
export function alertTable(alerts: readonly Alert[]): string {
  const rows = alerts.map((alert) => [
    alert.severity,
    alert.code,
    alert.subject,
    alert.text,
    alert.since,
    alert.snoozed_until && `until ${alert.snoozed_until} by ${alert.snoozed_by}: ${alert.snoozed_reason}`,
  ]);
  return renderTable(["SEVERITY", "ALERT", "SUBJECT", "", "SINCE", "SNOOZED"], rows);
}

async function list(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { alerts } = (await client.get<AnswerOf<"GET /ops/overview">>("/ops/overview")).overview;
  print({ alerts }, alertTable(alerts));
}

async function snooze(
  code: string,
  subject: string | undefined,
  options: { for: number; reason: string },
  command: Command,
): Promise<void> {
  const { client, print } = openSession(command);
  const body: BodyOf<"PUT /ops/alerts/:code/:subject/snooze"> = {
    until: new Date(Date.now() + options.for).toISOString(),
    reason: options.reason,
  };
  const answer = await client.put<AnswerOf<"PUT /ops/alerts/:code/:subject/snooze">>(pathOf(code, subject), body);
  const { text, snoozed_until: until } = answer.alert;
  print(answer, renderFields({ alert: code, subject: subject ?? null, text, "snoozed until": until }));
}

async function unsnooze(code: string, subject: string | undefined, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  await client.delete(pathOf(code, subject));
  print(
    { alert: { code, subject: subject ?? null, snoozed_until: null } },
    renderFields({ alert: code, is: "told again" }),
  );
}
