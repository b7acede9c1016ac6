import type { AnswerOf, BodyOf, Policy, PolicyDetails, PolicyRun } from "@tephra/wire";
import { type Command, InvalidArgumentError, Option } from "commander";
import type { Client } from "./client.ts";
import { chooseByName, isUuid, resolveId } from "./names.ts";
import { renderFields, renderTable } from "./output.ts";
import { openSession, positiveInteger, type Session } from "./session.ts";

interface VerifyOption {
  mode: string;
  every?: number;
  sample?: number;
}

/** What a policy says, as options. */
interface PolicyOptions {
  name?: string;
  description?: string;
  cron?: string;
  timezone?: string;
  window?: number;
  jitter?: number;
  fullEvery?: number;
  fullOn?: string;
  keep?: Record<string, number | string>;
  keepAll?: true;
  squash?: number | null;
  repository?: string;
  target?: number;
  priority?: string;
  verify?: VerifyOption | null;
  force?: boolean;
  enable?: true;
  confirm?: true;
  disable?: true;
}

interface SubjectOptions {
  confirm?: true;
  volume?: string;
  instance?: string;
  wholeProject?: true | string;
}

/** @returns the command `policy`, which has more below it */
export function addPolicyCommands(program: Command): Command {
  const policy = program.command("policy").description("When volumes are backed up, and how long backups are kept.");
  policy.command("list").description("the project's, and those published for all").action(list);
  policy.command("show").argument("<policy>", "id or name").action(show);
  addRuleOptions(policy.command("create"))
    .description("Make a policy. It applies to nothing until it is assigned.")
    .argument("<name>")
    .option("--publish", "For every project; admins only.")
    .action(create);
  addRuleOptions(policy.command("update").option("--name <name>"))
    .description("Change what is given; everything else stays.")
    .argument("<policy>", "id or name")
    .option("--enable")
    .option("--disable", "No run begins any more.")
    .action(update);
  policy
    .command("delete")
    .argument("<policy>", "id or name")
    .description("Remove a policy. Its backups are kept.")
    .option("--unassign", "Nothing protects its volumes any more.")
    .option("--move-to <policy>", "Another policy (id or name) takes over.")
    .action(remove);
  addSubjectOptions(policy.command("assign"))
    .argument("<policy>", "id or name")
    .option("--confirm", confirmation)
    .description("Assign a policy; what was assigned before is replaced.")
    .action(assign);
  addSubjectOptions(policy.command("unassign"))
    .argument("<policy>", "id or name")
    .description("Take an assignment back.")
    .action(unassign);
  policy
    .command("assignments")
    .argument("<policy>", "id or name")
    .description("what it is assigned to")
    .action(assignments);
  policy
    .command("of")
    .argument("<volume>", "id or name")
    .description("Which policy applies to a volume, and why.")
    .action(ofVolume);
  policy.command("run").argument("<policy>", "id or name").description("Begin a run now.").action(run);
  policy
    .command("runs")
    .argument("<policy>", "id or name")
    .argument("[run]", "id: show what this run had to do")
    .description("its runs, newest first")
    .option("--limit <number>", "", positiveInteger, 20)
    .action(runs);
  return policy;
}

const keepRules = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];

/** `daily=7`, `within=36h`: each is added to those before it. */
export function readKeep(text: string, before: Record<string, number | string> = {}): Record<string, number | string> {
  const [rule = "", value = ""] = text.split("=", 2);
  if (rule === "within") return { ...before, keep_within: value };
  if (rule === "delay" && /^\d+h$/.test(value)) return { ...before, deletion_delay_hours: Number.parseInt(value, 10) };
  const key = rule === "good" ? "min_good" : keepRules.includes(rule) ? `keep_${rule}` : null;
  if (key === null || !/^\d+$/.test(value)) {
    throw new InvalidArgumentError(
      `It must be RULE=NUMBER with a rule of ${keepRules.join(", ")}, good; or within=36h, delay=24h.`,
    );
  }
  return { ...before, [key]: Number(value) };
}

/** `deep`, or with more: `deep,every=7,sample=10`. */
export function readVerify(text: string): VerifyOption {
  const [mode = "", ...more] = text.split(",");
  const numbers = more.map((part) => /^(every|sample)=([1-9]\d*)$/.exec(part));
  if (!["quick", "deep", "drill"].includes(mode) || numbers.includes(null)) {
    throw new InvalidArgumentError("It must be quick, deep or drill, with every=RUNS or sample=PERCENT after commas.");
  }
  return { mode, ...Object.fromEntries(numbers.map((found) => [found?.[1] ?? "", Number(found?.[2])])) };
}

const count = (text: string): number => (text === "0" ? 0 : positiveInteger(text));

const confirmation = "The first run may delete more than half of the backups that are there.";

function addRuleOptions(command: Command): Command {
  return command
    .option("--cron <expression>", "Five fields, such as '0 2 * * *'.")
    .option("--timezone <name>", "IANA time zone (default: UTC).")
    .option("--window <minutes>", "Backups of a run begin within this time (default: 60).", positiveInteger)
    .option("--jitter <minutes>", "Their starts are spread over this time (default: 0).", count)
    .option("--full-every <number>", "Every n-th backup of a chain is full (default: 7).", positiveInteger)
    .option("--full-on <expression>", "The first backup after each of these times is full.")
    .option("--keep <rule=number>", "Retention, such as daily=7 or within=36h; can be repeated.", readKeep)
    .option("--keep-all", "No retention: nothing is deleted (default).")
    .option("--squash <members>", "Merge the oldest members of longer chains.", positiveInteger)
    .option("--no-squash", "Merge nothing (default).")
    .option("--verify <mode>", "Verify backups: quick, deep or drill, such as deep,every=7,sample=10.", readVerify)
    .option("--no-verify", "Verify nothing (default).")
    .option("--repository <name>", "Where backups go.")
    .option("--target <hours>", "The newest good backup should be no older.", positiveInteger)
    .addOption(
      new Option("--priority <priority>", "Of its backups (default: normal); high is for admins to give.").choices([
        "low",
        "normal",
        "high",
      ]),
    )
    .option("--force", "Back up volumes in use, too (default).")
    .option("--no-force", "Leave volumes in use alone.")
    .option("--description <text>")
    .option("--confirm", confirmation);
}

function addSubjectOptions(command: Command): Command {
  return command
    .option("--volume <volume>", "A volume (id or name).")
    .option("--instance <id>", "A machine, backed up as a whole.")
    .option("--whole-project [id]", "Every volume of the project, also those that are made later.");
}

/** Only what was given. */
const given = (fields: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

function rulesOf(options: PolicyOptions, before: Policy["schedule"] | null): Record<string, unknown> {
  const { cron, timezone, window, jitter, fullEvery, fullOn, keep, keepAll, squash, enable, disable } = options;
  if (fullEvery !== undefined && fullOn !== undefined)
    throw new Error("--full-every and --full-on exclude each other.");
  const times = given({ cron, timezone, window_minutes: window, jitter_minutes: jitter });
  const kind = fullOn === undefined ? fullEvery && { full_every: fullEvery } : { full_on: fullOn };
  return given({
    name: options.name,
    description: options.description,
    schedule: Object.keys(times).length === 0 ? undefined : { ...before, ...times },
    kind,
    retention: keepAll ? null : keep,
    squash: typeof squash === "number" ? { when_chain_longer_than: squash } : squash === null ? null : undefined,
    repository: options.repository,
    target_hours: options.target,
    priority: options.priority,
    verify: options.verify,
    force: options.force,
    enabled: enable ? true : disable ? false : undefined,
  });
}

/** `--no-…` is only said when it was typed: commander's default for it would change what is not asked for. */
const typed = (command: Command, options: PolicyOptions): PolicyOptions => {
  const isTyped = (name: string) => command.getOptionValueSource(name) === "cli";
  const { force, squash, verify, ...rest } = options;
  return {
    ...rest,
    ...(isTyped("force") && force !== undefined && { force }),
    ...(isTyped("verify") && verify !== undefined && { verify: (verify as unknown) === false ? null : verify }),
    ...(isTyped("squash") && squash !== undefined && { squash: (squash as unknown) === false ? null : squash }),
  };
};

export async function findPolicy(client: Client, reference: string): Promise<PolicyDetails> {
  const id = isUuid(reference) ? reference : chooseByName("policy", reference, await listPolicies(client)).id;
  return (await client.get<AnswerOf<"GET /ops/policies/:id">>(`/ops/policies/${id}`)).policy;
}

export const listPolicies = async (client: Client, signal?: AbortSignal): Promise<Policy[]> =>
  (await client.get<AnswerOf<"GET /ops/policies">>("/ops/policies?limit=1000", signal)).policies;

async function list(_options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const policies = await listPolicies(client);
  const rows = policies.map((each) => [
    each.id,
    each.name,
    each.project_id ?? "(published)",
    each.enabled ? "on" : "off",
    `${each.schedule.cron} ${each.schedule.timezone}`,
    each.next_at,
  ]);
  print({ policies }, renderTable(["ID", "NAME", "PROJECT", "STATE", "SCHEDULE", "NEXT"], rows));
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const session = openSession(command);
  printPolicy(session, await findPolicy(session.client, reference));
}

async function create(name: string, options: PolicyOptions & { publish?: true }, command: Command): Promise<void> {
  const session = openSession(command);
  const rules = rulesOf(typed(command, { ...options, name }), null);
  const policyBody = { ...rules, ...(options.publish && { project_id: null }) };
  const body = { policy: policyBody, confirm: options.confirm === true };
  const { policy } = await session.client.post<AnswerOf<"POST /ops/policies">>("/ops/policies", body);
  printPolicy(session, policy);
}

async function update(reference: string, options: PolicyOptions, command: Command): Promise<void> {
  const session = openSession(command);
  const { id, schedule } = await findPolicy(session.client, reference);
  const body = {
    policy: rulesOf(typed(command, options), schedule),
    confirm: options.confirm === true,
  } as BodyOf<"PUT /ops/policies/:id">;
  const { policy } = await session.client.put<AnswerOf<"PUT /ops/policies/:id">>(`/ops/policies/${id}`, body);
  printPolicy(session, policy);
}

async function remove(
  reference: string,
  { unassign: gone, moveTo }: { unassign?: true; moveTo?: string },
  command: Command,
): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const to = moveTo === undefined ? null : await findPolicy(client, moveTo);
  const query = to ? `?move_to=${to.id}` : gone ? "?assignments=remove" : "";
  await client.delete(`/ops/policies/${id}${query}`);
  print({ policy: { id, status: "deleted" } }, renderFields({ id, status: "deleted" }));
}

/** The one subject that the options name. */
async function subjectOf(client: Client, { volume, instance, wholeProject }: SubjectOptions) {
  const subjects = [volume, instance, wholeProject].filter((value) => value !== undefined);
  if (subjects.length !== 1) throw new Error("Name exactly one of --volume, --instance and --whole-project.");
  if (volume !== undefined) return { volume_id: await resolveId(client, "volume", volume) };
  if (instance !== undefined) return { instance_id: instance };
  const project = typeof wholeProject === "string" ? wholeProject : client.project;
  if (project === undefined)
    throw new Error("Only the service knows the token's project: give its id, --whole-project ID.");
  return { project_id: project };
}

async function assign(reference: string, options: SubjectOptions, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const body: BodyOf<"POST /ops/policies/:id/assignments"> = {
    assignment: await subjectOf(client, options),
    confirm: options.confirm === true,
  };
  const answer = await client.post<AnswerOf<"POST /ops/policies/:id/assignments">>(
    `/ops/policies/${id}/assignments`,
    body,
  );
  print(answer, renderFields({ ...answer.assignment, replaced: answer.replaced_policy_id }));
}

const listAssignments = async (client: Client, id: string) =>
  (await client.get<AnswerOf<"GET /ops/policies/:id/assignments">>(`/ops/policies/${id}/assignments?limit=1000`))
    .assignments;

async function unassign(reference: string, options: SubjectOptions, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const subject: { volume_id?: string; instance_id?: string; project_id?: string } = await subjectOf(client, options);
  const found = (await listAssignments(client, id)).find((each) =>
    subject.project_id === undefined
      ? (each.volume_id ?? each.instance_id) === (subject.volume_id ?? subject.instance_id)
      : each.scope === "project" && each.project_id === subject.project_id,
  );
  if (!found) throw new Error("The policy is not assigned to that.");
  await client.delete(`/ops/policies/${id}/assignments/${found.id}`);
  print({ assignment: { id: found.id, status: "deleted" } }, renderFields({ id: found.id, status: "deleted" }));
}

async function assignments(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const found = await listAssignments(client, (await findPolicy(client, reference)).id);
  const rows = found.map((each) => [
    each.id,
    each.scope,
    each.volume_id ?? each.instance_id ?? each.project_id,
    each.created_at,
  ]);
  print({ assignments: found }, renderTable(["ID", "SCOPE", "OF", "SINCE"], rows));
}

async function ofVolume(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const id = await resolveId(client, "volume", reference);
  const answer = await client.get<AnswerOf<"GET /ops/volumes/:id/policy">>(`/ops/volumes/${id}/policy`);
  const others = answer.candidates.slice(1).map(({ name, by }) => `${name} (${by})`);
  print(
    answer,
    renderFields({ policy: answer.policy?.name, why: answer.why, "instead of": others.join(", ") || null }),
  );
}

async function run(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const answer = await client.post<AnswerOf<"POST /ops/policies/:id/run">>(`/ops/policies/${id}/run`, {});
  print(answer, runTable([answer.run]));
}

async function runs(
  reference: string,
  runId: string | undefined,
  { limit }: { limit: number },
  command: Command,
): Promise<void> {
  const { client, print } = openSession(command);
  const { id } = await findPolicy(client, reference);
  const path = `/ops/policies/${id}/runs`;
  if (runId === undefined) {
    const answer = await client.get<AnswerOf<"GET /ops/policies/:id/runs">>(`${path}?limit=${limit}`);
    return print(answer, runTable(answer.runs));
  }
  const answer = await client.get<AnswerOf<"GET /ops/policies/:id/runs/:run_id">>(
    `${path}/${encodeURIComponent(runId)}?limit=${limit}`,
  );
  const rows = answer.items.map((each) => [
    each.volume_id ?? `machine ${each.instance_id}`,
    each.state,
    each.incremental === null ? null : each.incremental ? "incremental" : "full",
    each.starts_at,
    each.backup_id,
    each.reason,
  ]);
  const items = renderTable(["VOLUME", "STATE", "KIND", "STARTS", "BACKUP", "REASON"], rows);
  print(answer, `${runTable([answer.run])}\n${items}`);
}

function runTable(rows: readonly PolicyRun[]): string {
  const volumes = (each: PolicyRun): string =>
    Object.entries(each.volumes)
      .filter(([, number]) => number > 0)
      .map(([state, number]) => `${number} ${state}`)
      .join(", ");
  const cells = rows.map((each) => [
    each.id,
    each.due_at,
    each.scheduled ? each.state : "by hand",
    volumes(each),
    each.finished_at,
    each.reason,
  ]);
  return renderTable(["ID", "DUE", "STATE", "VOLUMES", "FINISHED", "REASON"], cells);
}

function printPolicy(session: Session, policy: PolicyDetails): void {
  const { schedule, kind, retention, squash, verify } = policy;
  const kept = retention && Object.entries(retention).map(([rule, value]) => `${rule.replace(/^keep_/, "")} ${value}`);
  const fields = {
    id: policy.id,
    name: policy.name,
    description: policy.description,
    project: policy.project_id ?? "published for every project",
    enabled: policy.enabled ? "yes" : "no",
    schedule: `${schedule.cron} ${schedule.timezone}, window ${schedule.window_minutes} min, jitter ${schedule.jitter_minutes} min`,
    full: "full_on" in kind ? `after ${kind.full_on}` : `every ${kind.full_every}`,
    keeps: kept ? kept.join(", ") : "everything",
    squash: squash ? `chains longer than ${squash.when_chain_longer_than}` : "never",
    repository: policy.repository,
    "volumes in use": policy.force ? "yes" : "no",
    priority: policy.priority,
    verifies: verify ? `${verify.mode}, every ${verify.every} runs, ${verify.sample} %` : "nothing",
    "target hours": policy.target_hours,
    next: policy.enabled ? policy.next_runs.join(", ") : null,
  };
  session.print({ policy }, renderFields(fields));
}
