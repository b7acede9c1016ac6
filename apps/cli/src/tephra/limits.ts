import { type AnswerOf, type BandwidthLimit, type BodyOf, weekDays } from "@tephra/wire";
import { type Command, InvalidArgumentError, Option } from "commander";
import { renderFields, renderTable } from "./output.ts";
import { openSession } from "./session.ts";

type LimitBody = BodyOf<"PUT /ops/limits/:traffic/:scope/:name">;
type Window = NonNullable<LimitBody["windows"]>[number];

const help = `
TRAFFIC is "volumes" (read for backups) or "repositories" (written and read). SCOPE and NAME say whose bytes are counted together:
  worker HOST | worker '*'   each worker of the host, or each of all workers, for itself
  project ID                 all of a project's, on all workers
  backend NAME               all that is read from a volume backend (volumes only)
  repository NAME            all that goes into a repository or comes from it (repositories only)

  tephra limit set repositories repository main --rate 200MiB --window "mon-fri 08:00-18:00 50MiB" --timezone Europe/Berlin`;

export function addLimitCommands(program: Command): void {
  const limit = program
    .command("limit")
    .description("Bandwidth limits, which admins can change while backups run, and observers list.");
  limit.command("list").description("List all limits, with what they allow now.").action(list);
  limit
    .command("set")
    .description("Set a limit, or replace it.")
    .argument("<traffic>")
    .argument("<scope>")
    .argument("<name>")
    .option("--rate <bytes>", "Bytes per second outside of all windows, such as 200MiB; no limit if absent.", parseRate)
    .addOption(
      new Option("--window <window>", "Days, times and a rate, or 'unlimited'; repeatable.").argParser(collectWindows),
    )
    .option("--timezone <name>", "Time zone of the windows.", "UTC")
    .addHelpText("after", help)
    .action(set);
  limit
    .command("remove")
    .description("Remove a limit.")
    .argument("<traffic>")
    .argument("<scope>")
    .argument("<name>")
    .action(remove);
}

const units: Readonly<Record<string, number>> = {
  "": 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
};

function parseRate(text: string): number {
  const [, number, unit = ""] = /^(\d+(?:\.\d+)?)\s*([kmg]i?)?b?(?:\/s)?$/i.exec(text) ?? [];
  const factor = units[unit.toLowerCase()];
  if (number === undefined || factor === undefined)
    throw new InvalidArgumentError("Expected bytes per second, such as 50MiB or 1000000.");
  return Math.round(Number(number) * factor);
}

const dayNames: readonly string[] = weekDays;

function parseDays(text: string): (typeof weekDays)[number][] {
  const days = text.split(",").flatMap((part) => {
    const [from, to = from] = part.split("-").map((day) => dayNames.indexOf(day));
    if (from === undefined || to === undefined || from < 0 || to < from)
      throw new InvalidArgumentError("Expected days such as mon-fri or sat,sun.");
    return weekDays.slice(from, to + 1);
  });
  return [...new Set(days)];
}

function collectWindows(text: string, before: Window[] = []): Window[] {
  const words = text.trim().toLowerCase().split(/\s+/);
  const [rate = "", times = "", days = weekDays.join(",")] = words.toReversed();
  const [from, to] = times.split("-");
  if (words.length < 2 || words.length > 3 || from === undefined || to === undefined)
    throw new InvalidArgumentError('Expected something like "mon-fri 08:00-18:00 50MiB".');
  const bytesPerSecond = rate === "unlimited" ? null : parseRate(rate);
  return [...before, { from, to, days: parseDays(days), timezone: "", bytes_per_second: bytesPerSecond }];
}

const pathOf = (names: readonly string[]): string => `/ops/limits/${names.map(encodeURIComponent).join("/")}`;

const rateText = (rate: number | null): string => (rate === null ? "unlimited" : String(rate));

const windowText = (window: BandwidthLimit["windows"][number]): string =>
  `${window.days.join(",")} ${window.from}-${window.to} ${window.timezone}: ${rateText(window.bytes_per_second)}`;

const fieldsOf = (limit: BandwidthLimit): Record<string, string> => ({
  traffic: limit.traffic,
  scope: limit.scope,
  name: limit.name,
  bytes_per_second: rateText(limit.bytes_per_second),
  windows: limit.windows.map(windowText).join("; "),
  bytes_per_second_now: rateText(limit.bytes_per_second_now),
  changed_by: limit.changed_by,
  changed_at: limit.changed_at,
});

async function list(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { limits } = await client.get<AnswerOf<"GET /ops/limits">>("/ops/limits");
  const rows = limits.map((limit) => [
    limit.traffic,
    limit.scope,
    limit.name,
    rateText(limit.bytes_per_second_now),
    rateText(limit.bytes_per_second),
    limit.windows.map(windowText).join("; "),
  ]);
  print({ limits }, renderTable(["TRAFFIC", "SCOPE", "NAME", "NOW, B/S", "OTHERWISE, B/S", "WINDOWS"], rows));
}

async function set(
  traffic: string,
  scope: string,
  name: string,
  options: { rate?: number; window?: Window[]; timezone: string },
  command: Command,
): Promise<void> {
  const { client, print } = openSession(command);
  const windows = (options.window ?? []).map((window) => ({ ...window, timezone: options.timezone }));
  const body: LimitBody = { bytes_per_second: options.rate ?? null, windows };
  const answer = await client.put<AnswerOf<"PUT /ops/limits/:traffic/:scope/:name">>(
    pathOf([traffic, scope, name]),
    body,
  );
  print(answer, renderFields(fieldsOf(answer.limit)));
}

async function remove(traffic: string, scope: string, name: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  await client.delete(pathOf([traffic, scope, name]));
  print({ removed: { traffic, scope, name } }, `${traffic} ${scope} ${name} removed\n`);
}
