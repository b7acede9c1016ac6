import { randomUUID } from "node:crypto";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { findPolicy, lockPolicy, type Policy, type PolicyAssignment } from "../rows/policies.ts";
import { findVolume } from "../rows/volumes.ts";
import { candidatesOf, type PolicySource, policyKey } from "./applies.ts";
import { refusalOf } from "./check.ts";
import { refuseMassDeletion } from "./preview.ts";

/** What a policy is assigned to: exactly one of the three. */
export interface Assigned {
  volumeId?: string;
  instanceId?: string;
  projectId?: string;
}

type Subject = Pick<PolicyAssignment, "scope" | "projectId" | "volumeId" | "instanceId">;

/** The subject, as the caller may see it. @throws InvalidError for one that is unknown, or of another project */
async function findSubject(tx: Transaction, principal: Principal, assigned: Assigned): Promise<Subject> {
  const { volumeId, instanceId, projectId } = assigned;
  if (volumeId !== undefined) {
    const volume = await tx.volume.findFirst({ where: { id: volumeId, ...visibleTo(principal) } });
    if (volume) return { scope: "volume", projectId: volume.projectId, volumeId, instanceId: null };
    throw refusalOf([{ key: "assignment.volume_id", problem: `there is no volume ${volumeId} in this project` }]);
  }
  if (instanceId !== undefined) {
    const found = await tx.instance.findMany({
      where: { id: instanceId, ...visibleTo(principal) },
      include: { group: true },
    });
    const instance = found.length > 1 ? found.find((row) => row.projectId === principal.projectId) : found[0];
    if (instance?.group) return { scope: "machine", projectId: instance.projectId, volumeId: null, instanceId };
    const problem = instance
      ? `instance ${instanceId} does not boot from a volume, so that it cannot be backed up as a whole`
      : `there is no instance ${instanceId} in this project`;
    throw refusalOf([{ key: "assignment.instance_id", problem }]);
  }
  const project = projectId ?? principal.projectId;
  if (!principal.isAdmin && project !== principal.projectId) {
    throw refusalOf([{ key: "assignment.project_id", problem: "is another project" }]);
  }
  return { scope: "project", projectId: project, volumeId: null, instanceId: null };
}

/** @throws InvalidError unless the policy is published, or of the subject's project */
function checkProject(policy: Policy, { scope, projectId }: Subject): void {
  if (policy.projectId === null || policy.projectId === projectId) return;
  const key = { volume: "volume_id", machine: "instance_id", project: "project_id" }[scope] ?? scope;
  throw refusalOf([{ key: `assignment.${key}`, problem: `is of another project than policy ${policy.id}` }]);
}

/**
 * Assigns a policy to a volume, a machine or a project. Each has one assignment at most: an earlier one is replaced.
 *
 * @returns the assignment, and the policy that was assigned before
 * @throws NotFoundError for an unknown policy; InvalidError for an unknown subject, or one of another project
 */
export async function assignPolicy(
  database: Database,
  principal: Principal,
  policyId: string,
  assigned: Assigned,
  { confirmed = false }: { confirmed?: boolean } = {},
): Promise<{ assignment: PolicyAssignment; replacedPolicyId: string | null }> {
  return inTransaction(database, async (tx) => {
    await findPolicy(tx, principal, policyId);
    const policy = await lockPolicy(tx, policyId);
    const subject = await findSubject(tx, principal, assigned);
    checkProject(policy, subject);
    const { scope, projectId, volumeId, instanceId } = subject;
    const where = volumeId === null ? { scope, projectId, instanceId } : { volumeId };
    const before = await tx.policyAssignment.findFirst({ where });
    if (before) await tx.policyAssignment.delete({ where: { id: before.id } });
    const assignment = await tx.policyAssignment.create({
      data: { ...subject, id: randomUUID(), policyId: policy.id, userId: principal.userId },
    });
    await refuseMassDeletion(tx, policy, { confirmed });
    return { assignment, replacedPolicyId: before && before.policyId !== policy.id ? before.policyId : null };
  });
}

/** Of a published policy, others than admins see those of their own project. Oldest first. @throws NotFoundError */
export async function listAssignments(
  database: Database,
  principal: Principal,
  { policyId, limit }: { policyId: string; limit: number },
): Promise<PolicyAssignment[]> {
  const { id } = await findPolicy(database, principal, policyId);
  return database.policyAssignment.findMany({
    where: { policyId: id, ...visibleTo(principal) },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
    take: limit,
  });
}

/** @throws NotFoundError */
export async function unassignPolicy(
  database: Database,
  principal: Principal,
  { policyId, assignmentId }: { policyId: string; assignmentId: string },
): Promise<void> {
  const { id } = await findPolicy(database, principal, policyId);
  const where = { id: assignmentId, policyId: id, ...visibleTo(principal) };
  const removed = isUuid(assignmentId) ? await database.policyAssignment.deleteMany({ where }) : { count: 0 };
  if (removed.count !== 1) throw new NotFoundError("Policy assignment", assignmentId);
}

export interface Candidate {
  source: PolicySource;
  policyId: string;
  name: string;
}

/** Every policy that could apply to a volume, the most specific first, which is the one that does; and the name in its metadata. */
export interface AppliedPolicy {
  candidates: Candidate[];
  /** Named in the metadata, and unknown. */
  unknownName: string | null;
}

/** @throws NotFoundError */
export async function policyOfVolume(database: Database, principal: Principal, id: string): Promise<AppliedPolicy> {
  const volume = await findVolume(database, principal, id);
  const candidates = await database.$queryRaw<Candidate[]>`
    SELECT c.source, c.policy_id AS "policyId", p.name
    FROM (${candidatesOf(Prisma.sql`v.id = ${volume.id}::uuid`)}) c JOIN policies p ON p.id = c.policy_id ORDER BY c.place`;
  const named = (volume.metadata as Record<string, string>)[policyKey];
  const known = candidates.some(({ source }) => source === "metadata");
  return { candidates, unknownName: named === undefined || known ? null : named };
}
