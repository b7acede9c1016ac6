import type { AnswerOf } from "@tephra/wire";
import { type Command, InvalidArgumentError } from "commander";
import { resolveId } from "./names.ts";
import { formatBytes, renderFields, renderTable } from "./output.ts";
import { findPolicy, readKeep } from "./policies.ts";
import { openSession, positiveInteger } from "./session.ts";

const GiB = 1024 ** 3;

/** What becomes of backups by a policy, below the command `policy`. */
export function addRetentionCommands(policy: Command): void {
  policy
    .command("preview")
    .argument("<policy>", "id or name")
    .description(
      "What retention would do now: which backups stay, go, are squashed or have to stay. Nothing is changed.",
    )
    .option("--volume <volume>", "only of this volume (id or name)")
    .option("--as-of <time>", "At another time: ISO 8601.")
    .action(preview);
  policy
    .command("simulate")
    .argument("[policy]", "id or name; without one, --cron has to be given")
    .description("Which backups of one volume will be there, and how many bytes they will take.")
    .option("--days <number>", "How long.", positiveInteger, 365)
    .option("--change-rate <percent>", "Share of the volume that is written in a day, such as 2%.", readPercent, 0.02)
    .option("--size <GiB>", "What a full backup stores.", positiveInteger, 100)
    .option("--cron <expression>", "Five fields, such as '0 2 * * *'.")
    .option("--timezone <name>", "IANA time zone (default: UTC).")
    .option("--full-every <number>", "Every n-th backup of a chain is full.", positiveInteger)
    .option("--keep <rule=number>", "Retention, such as daily=7 or within=36h; can be repeated.", readKeep)
    .option("--squash <members>", "Merge the oldest members of longer chains.", positiveInteger)
    .action(simulate);
}

function readPercent(text: string): number {
  const [, number] = /^(\d+(?:\.\d+)?)%$/.exec(text) ?? [];
  const share = Number(number) / 100;
  if (!(share >= 0 && share <= 1)) throw new InvalidArgumentError("It must be a percentage from 0% to 100%.");
  return share;
}

async function preview(
  reference: string,
  { volume, asOf }: { volume?: string; asOf?: string },
  command: Command,
): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const body = {
    ...(volume !== undefined && { volume_id: await resolveId(client, "volume", volume) }),
    ...(asOf !== undefined && { as_of: new Date(asOf).toISOString() }),
  };
  const answer = await client.post<AnswerOf<"POST /ops/policies/:id/preview">>(`/ops/policies/${id}/preview`, body);
  const { keep, go, squash, blocked } = answer.preview;
  const rows = [
    ...keep.map((one) => [one.backup_id, "keep", one.rules.join(", "), one.volume_id]),
    ...go.map((one) => [one.backup_id, "go", one.reason, one.volume_id]),
    ...squash.map((ids) => [ids.at(-1), "squash", `${ids.length} members become one`, null]),
    ...blocked.map((one) => [one.backup_id, "blocked", `needed by ${one.because.join(", ")}`, one.volume_id]),
  ];
  const sums = {
    volumes: answer.preview.truncated ? `${answer.preview.volumes}, of more` : answer.preview.volumes,
    ...{ keep: keep.length, go: go.length, squash: squash.length, blocked: blocked.length },
    frees: formatBytes(answer.preview.frees_bytes),
  };
  print(answer, `${renderTable(["BACKUP", "VERDICT", "WHY", "VOLUME"], rows)}\n${renderFields(sums)}`);
}

interface SimulateOptions {
  days: number;
  changeRate: number;
  size: number;
  cron?: string;
  timezone?: string;
  fullEvery?: number;
  keep?: Record<string, number | string>;
  squash?: number;
}

async function simulate(reference: string | undefined, options: SimulateOptions, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const policy = reference === undefined ? null : await findPolicy(client, reference);
  const { cron = policy?.schedule.cron, timezone, fullEvery, keep, squash } = options;
  if (cron === undefined) throw new Error("Name a policy, or give --cron.");
  const answer = await client.post<AnswerOf<"POST /ops/policies/simulate">>("/ops/policies/simulate", {
    ...(policy && { policy_id: policy.id }),
    schedule: { ...policy?.schedule, cron, ...(timezone !== undefined && { timezone }) },
    ...(fullEvery !== undefined && { kind: { full_every: fullEvery } }),
    ...(keep !== undefined && { retention: keep }),
    ...(squash !== undefined && { squash: { when_chain_longer_than: squash } }),
    ...{ days: options.days, change_rate: options.changeRate, full_bytes: options.size * GiB },
  });
  const { made, deleted, squashed, stored_bytes, peak_bytes, backups } = answer.simulation;
  const rows = backups.map((one) => [
    ...[one.at, one.full ? "full" : "incremental", formatBytes(one.bytes)],
    one.rules.length > 0 ? one.rules.join(", ") : "what builds on it",
  ]);
  const sums = {
    ...{ made, deleted, squashes: squashed, left: backups.length },
    ...{ stored: formatBytes(stored_bytes), "most at any time": formatBytes(peak_bytes) },
  };
  print(answer, `${renderTable(["DATA OF", "KIND", "STORED", "KEPT BY"], rows)}\n${renderFields(sums)}`);
}
