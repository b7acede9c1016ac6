import {
  assignPolicy,
  createPolicy,
  dueTimes,
  getPolicy,
  getRun,
  listAssignments,
  listPolicies,
  listRuns,
  type PolicyAssignmentRow,
  type PolicyRow,
  type PolicyRunItemRow,
  policyOfVolume,
  previewRetention,
  type RetentionPreview as RetentionPreviewRow,
  type RunRow,
  removePolicy,
  runPolicy,
  type SimulationResult,
  type Successor,
  simulatePolicy,
  unassignPolicy,
  updatePolicy,
} from "@tephra/control";
import {
  type AnswerOf,
  type Policy,
  type PolicyAssignment,
  type PolicyDetails,
  type PolicyRun,
  type PolicyRunItem,
  type PolicySimulation,
  type RetentionPreview,
  requests,
} from "@tephra/wire";
import type { Context } from "../context.ts";
import { allow } from "../http/policy.ts";
import { defineOps, type OpsCall } from "./serve.ts";

const isoOrNull = (time: Date | null): string | null => time?.toISOString() ?? null;

const view = (row: PolicyRow): Policy => ({
  id: row.id,
  project_id: row.projectId,
  user_id: row.userId,
  name: row.name,
  description: row.description,
  enabled: row.enabled,
  schedule: row.schedule,
  kind: row.kind,
  retention: row.retention,
  squash: row.squash,
  repository: row.repository,
  force: row.force,
  priority: row.priority,
  verify: row.verify,
  target_hours: row.targetHours,
  next_at: isoOrNull(row.nextAt),
  created_at: row.createdAt.toISOString(),
  updated_at: isoOrNull(row.updatedAt),
});

/** How many of the next times are told. */
const timesTold = 5;

async function details({ database }: Context, row: PolicyRow): Promise<{ policy: PolicyDetails }> {
  const times = await dueTimes(database, row, timesTold);
  return { policy: { ...view(row), next_runs: times.map((time) => time.toISOString()) } };
}

const viewAssignment = (row: PolicyAssignmentRow): PolicyAssignment => ({
  id: row.id,
  policy_id: row.policyId,
  scope: row.scope as PolicyAssignment["scope"],
  project_id: row.projectId,
  volume_id: row.volumeId,
  instance_id: row.instanceId,
  user_id: row.userId,
  created_at: row.createdAt.toISOString(),
});

const viewRun = (row: RunRow): PolicyRun => ({
  id: row.id,
  due_at: row.dueAt.toISOString(),
  state: row.state as PolicyRun["state"],
  scheduled: row.scheduled,
  reason: row.reason,
  operation_id: row.operationId,
  started_at: isoOrNull(row.startedAt),
  window_end: isoOrNull(row.windowEnd),
  finished_at: isoOrNull(row.finishedAt),
  volumes: row.items,
});

const viewItem = (row: PolicyRunItemRow): PolicyRunItem => ({
  project_id: row.projectId,
  volume_id: row.volumeId,
  instance_id: row.instanceId,
  starts_at: row.startsAt.toISOString(),
  state: row.state as PolicyRunItem["state"],
  reason: row.reason,
  incremental: row.incremental,
  backup_id: row.backupId,
  operation_id: row.operationId,
  started_at: isoOrNull(row.startedAt),
  finished_at: isoOrNull(row.finishedAt),
});

const viewPreview = (preview: RetentionPreviewRow): RetentionPreview => ({
  as_of: preview.asOf.toISOString(),
  volumes: preview.volumes,
  truncated: preview.truncated,
  keep: preview.keep.map(({ volumeId, id, rules }) => ({ volume_id: volumeId, backup_id: id, rules })),
  go: preview.go.map(({ volumeId, id, reason }) => ({ volume_id: volumeId, backup_id: id, reason })),
  squash: preview.squash,
  blocked: preview.blocked.map(({ volumeId, id, because }) => ({ volume_id: volumeId, backup_id: id, because })),
  frees_bytes: preview.freesBytes,
});

const viewSimulation = ({
  storedBytes,
  peakBytes,
  backups,
  series,
  ...counts
}: SimulationResult): PolicySimulation => ({
  ...counts,
  stored_bytes: storedBytes,
  peak_bytes: peakBytes,
  backups: backups.map(({ at, ...backup }) => ({ at: at.toISOString(), ...backup })),
  series: series.map((point) => {
    return { at: point.at.toISOString(), backups: point.backups, stored_bytes: point.storedBytes };
  }),
});

const idOf = ({ params }: OpsCall): string => params["id"] ?? "";

/** A published policy is the admins': whoever may see it may assign it, and no more. @throws Refusal 403, NotFoundError */
async function findOwn({ database }: Context, call: OpsCall): Promise<string> {
  const { id, projectId } = await getPolicy(database, call.principal, idOf(call));
  if (projectId === null) allow(call.principal, "ops:policy:publish");
  return id;
}

/** Only what was sent: absent keys stay as they are. */
const sent = <T extends object>(fields: T) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Key in keyof T]?: Exclude<T[Key], undefined>;
  };

const whys = {
  volume: "The policy is assigned to the volume.",
  metadata: "The volume names the policy in its metadata, as tephra:policy.",
  machine: "The policy is assigned to the machine that the volume is a disk of.",
  project: "The policy is assigned to the volume's project.",
} as const;

/** When volumes are backed up, and how long the backups are kept. */
export const policies = {
  list: defineOps({
    ...requests["GET /ops/policies"],
    handle: async ({ database }, { principal, query }) => {
      const rows = await listPolicies(database, principal, query);
      return { status: 200, body: { policies: rows.map(view) } satisfies AnswerOf<"GET /ops/policies"> };
    },
  }),

  show: defineOps({
    handle: async (context, call) => {
      const row = await getPolicy(context.database, call.principal, idOf(call));
      return { status: 200, body: (await details(context, row)) satisfies AnswerOf<"GET /ops/policies/:id"> };
    },
  }),

  create: defineOps({
    ...requests["POST /ops/policies"],
    handle: async (context, call) => {
      const { project_id: asked, target_hours: targetHours, ...policy } = call.body.policy;
      const projectId = asked === undefined ? call.principal.projectId : asked;
      if (projectId === null) allow(call.principal, "ops:policy:publish");
      else allow(call.principal, "ops:policy:create", projectId);
      const wanted = { ...policy, projectId, targetHours };
      const confirmed = { confirmed: call.body.confirm };
      const row = await createPolicy(context.database, context.config, call.principal, wanted, confirmed);
      return { status: 201, body: (await details(context, row)) satisfies AnswerOf<"POST /ops/policies"> };
    },
  }),

  update: defineOps({
    ...requests["PUT /ops/policies/:id"],
    handle: async (context, call) => {
      const id = await findOwn(context, call);
      const { target_hours: targetHours, ...fields } = call.body.policy;
      const change = sent({ ...fields, targetHours });
      const changed = { id, change, confirmed: call.body.confirm };
      const row = await updatePolicy(context.database, context.config, call.principal, changed);
      return { status: 200, body: (await details(context, row)) satisfies AnswerOf<"PUT /ops/policies/:id"> };
    },
  }),

  remove: defineOps({
    ...requests["DELETE /ops/policies/:id"],
    handle: async (context, call) => {
      const id = await findOwn(context, call);
      const { assignments, move_to: to } = call.query;
      const successor: Successor =
        to !== undefined ? { kind: "policy", id: to } : assignments === undefined ? null : { kind: "none" };
      await removePolicy(context.database, call.principal, { id, successor });
      return { status: 204 };
    },
  }),

  /** What becomes of one volume by the rules of a policy, or by others. */
  simulate: defineOps({
    ...requests["POST /ops/policies/simulate"],
    handle: async (context, call) => {
      const { policy_id: policyId, from, days, full_bytes: fullBytes, change_rate: changeRate, ...given } = call.body;
      const rules = sent(given);
      const asked = { policyId, rules, from, days, fullBytes, changeRate };
      const simulation = viewSimulation(await simulatePolicy(context.database, context.config, call.principal, asked));
      return { status: 200, body: { simulation } satisfies AnswerOf<"POST /ops/policies/simulate"> };
    },
  }),

  /** What retention would do: nothing is changed. */
  preview: defineOps({
    ...requests["POST /ops/policies/:id/preview"],
    handle: async ({ database }, call) => {
      const { as_of: asOf, change, volume_id: volumeId } = call.body;
      const asked = { asOf, change, volumeId };
      const preview = viewPreview(await previewRetention(database, call.principal, idOf(call), asked));
      return { status: 200, body: { preview } satisfies AnswerOf<"POST /ops/policies/:id/preview"> };
    },
  }),

  assignments: defineOps({
    ...requests["GET /ops/policies/:id/assignments"],
    handle: async ({ database }, call) => {
      const asked = { policyId: idOf(call), limit: call.query.limit };
      const rows = await listAssignments(database, call.principal, asked);
      const body = { assignments: rows.map(viewAssignment) } satisfies AnswerOf<"GET /ops/policies/:id/assignments">;
      return { status: 200, body };
    },
  }),

  assign: defineOps({
    ...requests["POST /ops/policies/:id/assignments"],
    handle: async ({ database }, call) => {
      const { volume_id: volumeId, instance_id: instanceId, project_id: projectId } = call.body.assignment;
      const assigned = sent({ volumeId, instanceId, projectId });
      const confirmed = { confirmed: call.body.confirm };
      const made = await assignPolicy(database, call.principal, idOf(call), assigned, confirmed);
      const body = {
        assignment: viewAssignment(made.assignment),
        replaced_policy_id: made.replacedPolicyId,
      } satisfies AnswerOf<"POST /ops/policies/:id/assignments">;
      return { status: 201, body };
    },
  }),

  unassign: defineOps({
    handle: async ({ database }, call) => {
      const asked = { policyId: idOf(call), assignmentId: call.params["assignment_id"] ?? "" };
      await unassignPolicy(database, call.principal, asked);
      return { status: 204 };
    },
  }),

  /** Begins a run now. The next pass of the reconciler begins its backups. */
  run: defineOps({
    ...requests["POST /ops/policies/:id/run"],
    handle: async (context, call) => {
      const { database, config } = context;
      const policyId = await findOwn(context, call);
      const runId = await runPolicy(database, config, call.principal, policyId);
      const { run } = await getRun(database, call.principal, { policyId, runId, limit: 1 });
      return { status: 202, body: { run: viewRun(run) } satisfies AnswerOf<"POST /ops/policies/:id/run"> };
    },
  }),

  runs: defineOps({
    ...requests["GET /ops/policies/:id/runs"],
    handle: async ({ database }, call) => {
      const rows = await listRuns(database, call.principal, { policyId: idOf(call), limit: call.query.limit });
      return { status: 200, body: { runs: rows.map(viewRun) } satisfies AnswerOf<"GET /ops/policies/:id/runs"> };
    },
  }),

  showRun: defineOps({
    ...requests["GET /ops/policies/:id/runs/:run_id"],
    handle: async ({ database }, call) => {
      const asked = { policyId: idOf(call), runId: call.params["run_id"] ?? "", limit: call.query.limit };
      const { state } = call.query;
      const { run, items } = await getRun(database, call.principal, { ...asked, ...(state && { state }) });
      const body = {
        run: viewRun(run),
        items: items.map(viewItem),
      } satisfies AnswerOf<"GET /ops/policies/:id/runs/:run_id">;
      return { status: 200, body };
    },
  }),

  /** Which policy applies to a volume, and why. */
  ofVolume: defineOps({
    handle: async ({ database }, call) => {
      const { candidates, unknownName } = await policyOfVolume(database, call.principal, idOf(call));
      const [applied] = candidates;
      const why = applied ? whys[applied.source] : "No policy applies to the volume.";
      const unknown =
        unknownName === null ? "" : ` Its metadata names ${JSON.stringify(unknownName)}, which is unknown.`;
      const body = {
        policy: applied ? { id: applied.policyId, name: applied.name } : null,
        by: applied?.source ?? null,
        why: `${why}${unknown}`,
        candidates: candidates.map(({ source, policyId, name }) => ({ by: source, policy_id: policyId, name })),
      } satisfies AnswerOf<"GET /ops/volumes/:id/policy">;
      return { status: 200, body };
    },
  }),
};
