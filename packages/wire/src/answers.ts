import { z } from "zod";
import { About } from "./about.ts";
import { AuditEntry } from "./audit.ts";
import { BackupChain, BackupDetails, BackupHealth, BackupList, DeletedBackup, RestoreCheck } from "./backups.ts";
import { Changes } from "./changes.ts";
import { id } from "./fields.ts";
import { listing, partitions } from "./files.ts";
import { GroupSnapshot, Instance, ListedInstance } from "./instances.ts";
import { BandwidthLimit } from "./limits.ts";
import { Notification } from "./notifications.ts";
import { AcceptedOperation, Operation, OperationDetails, OperationRanges } from "./operations.ts";
import { Alert, Overview, WorkerCard } from "./overview.ts";
import {
  Policy,
  PolicyAssignment,
  PolicyDetails,
  PolicyRun,
  PolicyRunItem,
  PolicySimulation,
  RetentionPreview,
  VolumePolicy,
} from "./policies.ts";
import { Project } from "./projects.ts";
import { QueueState } from "./queue.ts";
import { Repository, RepositoryDetails } from "./repositories.ts";
import { Samples } from "./samples.ts";
import { SearchHit } from "./search.ts";
import { Session } from "./sessions.ts";
import { ProtectedVolume, ProtectionDays, protectionState, VolumeDetails, VolumeProtection } from "./volumes.ts";

const oneInstance = z.object({ instance: Instance });
const onePolicy = z.object({ policy: PolicyDetails });

/**
 * The JSON answers of each route by status; null: no body. Faults are not among them: all routes share their form. New keys may be added
 * to an answer at any time, so clients must ignore those that they do not know.
 */
export const answers = {
  "GET /healthz": { 200: z.object({ status: z.literal("ok") }) },
  "GET /readyz": {
    200: z.object({ status: z.literal("ready"), warnings: z.array(z.string()).optional() }),
    503: z.object({ status: z.literal("unavailable"), reasons: z.array(z.string()) }),
  },
  "GET /ops/session": { 200: z.object({ session: Session }) },
  "POST /ops/session": { 204: null },
  "DELETE /ops/session": { 204: null },
  "GET /ops/overview": { 200: z.object({ overview: Overview }) },
  "PUT /ops/alerts/:code/:subject/snooze": { 200: z.object({ alert: Alert }) },
  "DELETE /ops/alerts/:code/:subject/snooze": { 204: null },
  "GET /ops/changes": { 200: Changes },
  /** `text/event-stream`, without an end. */
  "GET /ops/events": { 200: null },
  "GET /ops/workers": { 200: z.object({ workers: z.array(WorkerCard) }) },
  "GET /ops/queue": { 200: z.object({ queue: QueueState }) },
  "GET /ops/samples": { 200: Samples },
  "GET /ops/search": { 200: z.object({ hits: z.array(SearchHit) }) },
  "GET /ops/projects": { 200: z.object({ projects: z.array(Project), next: z.string().nullable() }) },
  "GET /ops/repositories": { 200: z.object({ repositories: z.array(Repository) }) },
  "GET /ops/repositories/:name": { 200: z.object({ repository: RepositoryDetails }) },
  "GET /ops/operations": { 200: z.object({ operations: z.array(Operation), next: id.nullable() }) },
  "GET /ops/operations/:id": { 200: z.object({ operation: OperationDetails }) },
  "GET /ops/operations/:id/ranges": { 200: OperationRanges },
  "POST /ops/operations/:id/cancel": { 202: AcceptedOperation },
  "POST /ops/operations/:id/retry": { 202: AcceptedOperation },
  "PUT /ops/operations/:id/priority": { 200: z.object({ operation: Operation }) },
  "GET /ops/notifications": { 200: z.object({ notifications: z.array(Notification) }) },
  "POST /ops/notifications/:id/retry": { 202: z.object({}) },
  "GET /ops/about": { 200: z.object({ about: About }) },
  "GET /ops/audit": { 200: z.object({ audit: z.array(AuditEntry) }) },
  "GET /ops/volumes": {
    200: z.object({
      volumes: z.array(ProtectedVolume),
      facets: z.object({ state: z.record(protectionState, z.number().int().nonnegative()) }),
      next: id.nullable(),
    }),
  },
  "GET /ops/protection/days": { 200: ProtectionDays },
  "PUT /ops/volumes/:id/exclusion": { 200: z.object({ protection: VolumeProtection }) },
  "DELETE /ops/volumes/:id/exclusion": { 204: null },
  "GET /ops/volumes/:id": { 200: z.object({ volume: VolumeDetails }) },
  "GET /ops/backups": { 200: BackupList },
  "GET /ops/backups/:id": { 200: z.object({ backup: BackupDetails }) },
  "GET /ops/backups/:id/chain": { 200: BackupChain },
  "GET /ops/backups/:id/restore-check": { 200: RestoreCheck },
  "PUT /ops/backups/:id/hold": { 200: z.object({ backup: BackupHealth }) },
  "DELETE /ops/backups/:id/hold": { 204: null },
  "GET /ops/deleted-backups": { 200: z.object({ backups: z.array(DeletedBackup) }) },
  "DELETE /ops/deleted-backups/:id": { 202: z.object({}) },
  "POST /ops/backups/:id/undelete": { 200: z.object({ backups: z.array(z.object({ id })) }) },
  "GET /ops/backups/:id/partitions": { 200: partitions },
  "GET /ops/backups/:id/files": { 200: listing },
  /** To a server of images, for the bytes. */
  "GET /ops/backups/:id/files/content": { 307: null },
  "GET /ops/snapshots/:id/partitions": { 200: partitions },
  "GET /ops/snapshots/:id/files": { 200: listing },
  "GET /ops/snapshots/:id/files/content": { 307: null },
  "GET /ops/instances": { 200: z.object({ instances: z.array(ListedInstance), next: z.string().nullable() }) },
  "POST /ops/instances": { 201: oneInstance },
  "GET /ops/instances/:id": { 200: z.object({ instance: ListedInstance }) },
  "PUT /ops/instances/:id": { 200: oneInstance },
  "DELETE /ops/instances/:id": { 204: null },
  "POST /ops/instances/:id/attach": { 200: oneInstance },
  "POST /ops/instances/:id/detach": { 200: oneInstance },
  "GET /ops/policies": { 200: z.object({ policies: z.array(Policy) }) },
  "POST /ops/policies": { 201: onePolicy },
  "GET /ops/policies/:id": { 200: onePolicy },
  "PUT /ops/policies/:id": { 200: onePolicy },
  "DELETE /ops/policies/:id": { 204: null },
  "GET /ops/policies/:id/assignments": { 200: z.object({ assignments: z.array(PolicyAssignment) }) },
  "POST /ops/policies/:id/assignments": {
    201: z.object({ assignment: PolicyAssignment, replaced_policy_id: id.nullable() }),
  },
  "DELETE /ops/policies/:id/assignments/:assignment_id": { 204: null },
  "POST /ops/policies/:id/run": { 202: z.object({ run: PolicyRun }) },
  "GET /ops/policies/:id/runs": { 200: z.object({ runs: z.array(PolicyRun) }) },
  "GET /ops/policies/:id/runs/:run_id": { 200: z.object({ run: PolicyRun, items: z.array(PolicyRunItem) }) },
  "POST /ops/policies/:id/preview": { 200: z.object({ preview: RetentionPreview }) },
  "POST /ops/policies/simulate": { 200: z.object({ simulation: PolicySimulation }) },
  "GET /ops/volumes/:id/policy": { 200: VolumePolicy },
  "GET /ops/group-snapshots/:id": { 200: z.object({ group_snapshot: GroupSnapshot }) },
  "POST /ops/backups/:id/verify": { 202: AcceptedOperation },
  "POST /ops/backups/:id/squash": { 202: AcceptedOperation },
  "POST /ops/repositories/:name/reap": { 202: AcceptedOperation },
  "POST /ops/repositories/:name/rescan": { 202: AcceptedOperation },
  "GET /ops/limits": { 200: z.object({ limits: z.array(BandwidthLimit) }) },
  "PUT /ops/limits/:traffic/:scope/:name": { 200: z.object({ limit: BandwidthLimit }) },
  "DELETE /ops/limits/:traffic/:scope/:name": { 204: null },
  "POST /ops/volumes/import": { 202: AcceptedOperation.extend({ volume: z.object({ id }) }) },
  "POST /ops/volumes/:id/export": { 202: AcceptedOperation },
} as const satisfies Readonly<Record<string, Readonly<Record<number, z.ZodType | null>>>>;

/** Method and path of a route. */
export type OpsRouteKey = keyof typeof answers;

type SchemaOf<Key extends OpsRouteKey> = (typeof answers)[Key][keyof (typeof answers)[Key]];
type Bodies = { [Key in OpsRouteKey]: z.infer<Extract<SchemaOf<Key>, z.ZodType>> };

/** The bodies of the answers by route. An interface has a name that compilers keep: the types of all routes at once are too long to be spelled out. */
export interface OpsAnswers extends Bodies {}

/** The body of an answer of this route. */
export type AnswerOf<Key extends OpsRouteKey> = OpsAnswers[Key];
