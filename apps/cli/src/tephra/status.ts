import type { AnswerOf, Operation } from "@tephra/wire";
import { Argument, type Command, Option } from "commander";
import { alertTable } from "./alerts.ts";
import type { Client } from "./client.ts";
import { resolveId } from "./names.ts";
import { formatBytes, formatSeconds, renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession, positiveInteger } from "./session.ts";

/** The most important figures in /metrics. */
const figures = {
  workers: "tephra_workers",
  slots: "tephra_worker_slots",
  ready: "tephra_tasks_ready",
  dispatched: "tephra_tasks_dispatched",
  running: "tephra_tasks_running",
  queue_age_seconds: "tephra_queue_age_seconds",
  last_success_age_seconds: "tephra_last_success_age_seconds",
} as const;

type Figures = Record<keyof typeof figures, number | null> & { volumes: Record<string, number> };

const states = ["queued", "running", "succeeded", "failed", "cancelled"];

export function addStatusCommands(program: Command): void {
  program
    .command("status")
    .description(
      "Show the service, its workers, what asks for somebody, and live operations. Exits with status 1 unless ready.",
    )
    .action(status);
  const operation = program
    .command("operation")
    .description("Operations: backups, restores, deletions, imports and so on.");
  operation
    .command("list")
    .description("newest first")
    .option("--backup <backup>", "of this backup (id or name)")
    .option("--volume <volume>", "of this volume (id or name)")
    .addOption(new Option("--state <state...>", "Any of these.").choices(states))
    .option("--kind <kind...>", "Any of these, such as backup-create.")
    .option("--of-project <id>", "of this project (admins and observers)")
    .option("--repository <name>", "of backups in this repository, and passes over it")
    .option("--worker <id>", "that this worker is at work on (admins and observers)")
    .option("--request <id>", "that this request has asked for")
    .option("--parent <id>", "that this one is made of")
    .option("--stuck", "that no live worker can go on with, or of which no byte has moved for a minute")
    .option("--from <time>", "When it was asked for, inclusive; ISO 8601, with a time zone.")
    .option("--to <time>", "When it was asked for, exclusive.")
    .option("--limit <count>", "Maximum number of operations.", positiveInteger, 100)
    .action(list);
  operation.command("show").argument("<id>").option("--tasks", "With its first 500 tasks.").action(show);
  operation
    .command("ranges")
    .description(
      "How far each range is. d: done; r: running; t: taken over; h: handed to a worker; .: waits; x: failed.",
    )
    .argument("<id>")
    .action(ranges);
  operation
    .command("cancel")
    .description(
      "End it now. Its source is free again; a backup that it was making, or the target of a restore, is in error.",
    )
    .argument("<id>")
    .action(cancel);
  addWaitOptions(operation.command("retry"))
    .description("Do again what a failed one did not, by an operation of its own.")
    .argument("<id>")
    .action(retry);
  operation
    .command("priority")
    .description("Have a live one go before others, or after them (admins).")
    .argument("<id>")
    .addArgument(new Argument("<priority>").choices(["high", "normal", "low"]))
    .action(prioritize);
}

async function status(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const readiness = await client.getText("/readyz");
  const ready = readiness.status === 200;
  const { warnings = [] } = parsed(readiness.text) as { warnings?: string[] };
  const versions = await supportedVersions(client);
  const counted = ready ? readFigures((await client.getText("/metrics")).text) : null;
  const operations = ready ? await liveOperations(client) : [];
  const { alerts } = ready
    ? (await client.get<AnswerOf<"GET /ops/overview">>("/ops/overview")).overview
    : { alerts: [] };
  const document = {
    url: client.url,
    ready,
    alerts,
    readiness: parsed(readiness.text),
    versions,
    figures: counted,
    operations,
  };
  const fields = {
    url: client.url,
    ready: ready ? "yes" : `no: ${readiness.text}`,
    "block storage API": versions.join(", "),
    ...(warnings.length === 0 ? {} : { warning: warnings.join("; ") }),
    ...(counted === null ? {} : describe(counted)),
    ...(ready && alerts.every((alert) => alert.snoozed_until !== null)
      ? { alerts: alerts.length === 0 ? "none" : `none, ${alerts.length} snoozed` }
      : {}),
  };
  const text = [
    renderFields(fields),
    alerts.length === 0 ? "" : `\n${alertTable(alerts)}`,
    operations.length === 0 ? "" : `\n${operationTable(operations)}`,
  ];
  print({ status: document }, text.join(""));
  if (!ready) process.exitCode = 1;
}

async function supportedVersions(client: Client): Promise<string[]> {
  const { status: code, text } = await client.getText("/");
  if (code !== 200 && code !== 300) return [];
  const { versions } = parsed(text) as { versions?: { min_version?: string; version?: string }[] };
  return (versions ?? []).map((version) => `${version.min_version} to ${version.version}`);
}

async function liveOperations(client: Client): Promise<Operation[]> {
  const found: Operation[] = [];
  for (const state of ["running", "queued"]) {
    const { operations } = await client.get<AnswerOf<"GET /ops/operations">>(`/ops/operations?state=${state}`);
    found.push(...operations);
  }
  return found;
}

/** Lines of the exposition format are `name{labels} value`; of the figures used here, only the volumes by state have a label. */
function readFigures(text: string): Figures {
  const values = new Map(text.split("\n").map((line) => [line.split(" ")[0], Number(line.split(" ")[1])]));
  const entries = Object.entries(figures).map(([name, metric]) => {
    const value = values.get(metric);
    return [name, value === undefined || Number.isNaN(value) ? null : value];
  });
  const states = [...text.matchAll(/^tephra_volumes\{state="([^"]+)"\} (\d+)$/gm)];
  const volumes = Object.fromEntries(states.map(([, state, number]) => [state, Number(number)]));
  return { ...Object.fromEntries(entries), volumes } as Figures;
}

function describe(counted: Figures): Record<string, string> {
  const seconds = (value: number | null): string => (value === null ? "-" : formatSeconds(value));
  return {
    workers: `${counted.workers ?? "-"} with ${counted.slots ?? "-"} slots`,
    tasks: `${counted.running ?? "-"} running, ${counted.dispatched ?? "-"} dispatched, ${counted.ready ?? "-"} ready`,
    volumes:
      Object.entries(counted.volumes)
        .map(([state, number]) => `${number} ${state}`)
        .join(", ") || "-",
    "oldest waiting": seconds(counted.queue_age_seconds),
    "last success":
      counted.last_success_age_seconds === null ? "-" : `${seconds(counted.last_success_age_seconds)} ago`,
  };
}

interface ListOptions {
  backup?: string;
  volume?: string;
  state?: string[];
  kind?: string[];
  ofProject?: string;
  repository?: string;
  worker?: string;
  request?: string;
  parent?: string;
  stuck?: boolean;
  from?: string;
  to?: string;
  limit: number;
}

async function list(options: ListOptions, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { backup, volume, state, kind, stuck, limit } = options;
  const filters = {
    backup_id: backup === undefined ? undefined : await resolveId(client, "backup", backup),
    volume_id: volume === undefined ? undefined : await resolveId(client, "volume", volume),
    state: state?.join(","),
    kind: kind?.join(","),
    project_id: options.ofProject,
    repository: options.repository,
    worker_id: options.worker,
    request_id: options.request,
    parent_id: options.parent,
    stuck: stuck === true ? "1" : undefined,
    from: options.from,
    to: options.to,
    limit: String(limit),
  };
  const given = Object.entries(filters).filter((filter): filter is [string, string] => filter[1] !== undefined);
  const search = new URLSearchParams(given);
  const { operations } = await client.get<AnswerOf<"GET /ops/operations">>(`/ops/operations?${search}`);
  print({ operations }, operationTable(operations));
}

async function cancel(id: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  await client.post(`/ops/operations/${encodeURIComponent(id)}/cancel`, {});
  print({ operation: { id, state: "cancelled" } }, renderFields({ id, state: "cancelled" }));
}

/** Letters in a line. */
const stripWidth = 100;

async function ranges(id: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const path = `/ops/operations/${encodeURIComponent(id)}/ranges`;
  const told = await client.get<AnswerOf<"GET /ops/operations/:id/ranges">>(path);
  const { length_bytes: length, range_bytes: each, states, running } = told;
  const fields = { of: formatBytes(length), ranges: states.length, "bytes each": formatBytes(each) };
  const strip = states.match(new RegExp(`.{1,${stripWidth}}`, "g"))?.join("\n") ?? "";
  const rows = running.map((range) => [range.ordinal, range.worker_id, range.try, formatBytes(range.bytes_done)]);
  print(told, `${renderFields(fields)}${strip}\n${renderTable(["RUNNING", "WORKER", "TRY", "BYTES"], rows)}`);
}

async function retry(id: string, _options: object, command: Command): Promise<void> {
  const { client, settle, print } = openSession(command);
  const path = `/ops/operations/${encodeURIComponent(id)}/retry`;
  const { operation } = await client.post<AnswerOf<"POST /ops/operations/:id/retry">>(path, {});
  await settle({ id: operation.id });
  print({ operation }, renderFields({ id: operation.id, "in place of": id }));
}

async function prioritize(id: string, priority: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const path = `/ops/operations/${encodeURIComponent(id)}/priority`;
  const { operation } = await client.put<AnswerOf<"PUT /ops/operations/:id/priority">>(path, { priority });
  print({ operation }, renderFields({ id: operation.id, state: operation.state, priority: operation.priority }));
}

async function show(id: string, options: { tasks?: boolean }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { operation } = await client.get<AnswerOf<"GET /ops/operations/:id">>(
    `/ops/operations/${encodeURIComponent(id)}${options.tasks === true ? "?tasks=1" : ""}`,
  );
  const { actions, why, phases, tries, tasks = [], ...shown } = operation;
  const fields = Object.entries(shown).map(([name, value]) => {
    const isBytes = name.startsWith("bytes_") && typeof value === "number";
    return [name.replaceAll("_", " "), isBytes ? `${value} (${formatBytes(value)})` : value];
  });
  const may = actions.filter(({ allowed }) => allowed).map(({ name }) => name);
  const text = renderFields({
    ...Object.fromEntries(fields),
    why: why?.text ?? null,
    since: why?.since ?? null,
    "can be": may.join(", ") || "left alone",
  });
  const parts = phases.map(({ name, started_at, finished_at }) => [name, started_at, finished_at]);
  const tables = [
    parts.length === 0 ? "" : `\n${renderTable(["PHASE", "STARTED", "FINISHED"], parts)}`,
    tries.length === 0 ? "" : `\nBegun more than once, or failed:\n${taskTable(tries)}`,
    tasks.length === 0 ? "" : `\n${taskTable(tasks)}`,
  ];
  print({ operation }, text + tables.join(""));
}

function taskTable(tasks: AnswerOf<"GET /ops/operations/:id">["operation"]["tries"]): string {
  const rows = tasks.map((task) => [
    task.kind,
    task.ordinal,
    task.state,
    task.range_length === 0 ? null : `${formatBytes(task.range_offset)} + ${formatBytes(task.range_length)}`,
    task.worker_id,
    task.try,
    formatBytes(task.bytes_done),
    task.rate_bytes_per_second === null ? null : `${formatBytes(task.rate_bytes_per_second)}/s`,
    task.reason,
  ]);
  return renderTable(["TASK", "#", "STATE", "RANGE", "WORKER", "TRY", "BYTES", "RATE", "REASON"], rows);
}

function operationTable(operations: Operation[]): string {
  const rows = operations.map((operation) => [
    operation.id,
    operation.kind,
    operation.state,
    `${operation.tasks_done}/${operation.tasks_total}`,
    `${formatBytes(operation.bytes_done)} of ${formatBytes(operation.bytes_total)}`,
    operation.seconds_left === null ? null : formatSeconds(operation.seconds_left),
    operation.fail_reason,
    operation.created_at,
  ]);
  return renderTable(["ID", "KIND", "STATE", "TASKS", "BYTES", "LEFT", "FAIL REASON", "CREATED"], rows);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
