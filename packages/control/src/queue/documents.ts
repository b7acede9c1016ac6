import { z } from "zod";
import { type Compression, compressionLevels, zlibEncoders } from "../config.ts";
import { MalformedDocumentError, NewerDocumentError } from "../errors.ts";
import { documentVersion } from "./document-version.ts";
import type { ClaimedTask, Json, TaskKind } from "./tasks.ts";

/** What one process writes into a row as JSON and another reads, possibly one of another release: the schemas of version 1. */

const version = z.literal(1).exactOptional();
const size = z.int().min(0);
const length = z.int().min(1);
const text = z.string();

const StoredLink = z.object({ backupId: z.guid(), repository: text, container: text, prefix: text });

/** A volume as the service that has it showed it when an operation on it was accepted: there is no row of it. */
const SeenVolume = z.object({
  id: z.guid(),
  projectId: text,
  userId: text,
  sizeGib: length,
  status: text,
  availabilityZone: text,
  name: text.nullable(),
  description: text.nullable(),
  bootable: z.boolean(),
  metadata: z.record(z.string(), text),
  imageMetadata: z.record(z.string(), text),
  volumeType: text.nullable(),
  multiattach: z.boolean(),
  encrypted: z.boolean(),
  createdAt: text,
  seenAt: text,
  /** The snapshot of it that is backed up. */
  snapshot: z.object({ id: z.guid(), sizeGib: length, status: text, createdAt: text }).exactOptional(),
});
export type SeenVolume = z.infer<typeof SeenVolume>;

/** Everything that determines a backup's bytes and names. Fixed once in the operation row; every worker follows it. */
const BackupPlan = z.object({
  version,
  backupId: z.guid(),
  volumeId: z.guid(),
  repository: text,
  backend: text,
  /** What is read: the volume's own file, a user's snapshot, or a temporary one whose name is recorded before it is taken. */
  source: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("volume") }),
    /** `from`: the user's snapshot that the temporary one is made of; absent: the volume. */
    z.object({ kind: z.literal("snapshot"), id: z.guid(), temporary: z.boolean(), from: z.guid().exactOptional() }),
  ]),
  container: text,
  prefix: text,
  compression: z.enum(Object.keys(compressionLevels) as [Compression, ...Compression[]]),
  level: z.int(),
  /** Absent from plans of earlier releases: zlib. */
  zlibEncoder: z.enum(zlibEncoders).exactOptional(),
  objectBytes: length,
  blockBytes: length,
  volumeBytes: size,
  rangeBytes: length,
  createdAt: text,
  name: text.nullable(),
  description: text.nullable(),
  volumeMeta: text.nullable(),
  parentId: z.guid().nullable(),
  /** Whether its objects are encrypted; plans of earlier releases do not say. */
  encrypted: z.boolean().exactOptional(),
  parent: StoredLink.nullable(),
  /**
   * The snapshot whose bytes the parent has: only what the storage says has changed since is read, and samples. `inRow`: which of the
   * backups that do so, each on the other, this one is. Absent: everything is read.
   */
  changes: z.object({ since: z.guid(), inRow: length }).exactOptional(),
  /** Fingerprint of the source when the ranges were cut; a range that sees another one fails the backup. */
  fingerprint: text.nullable(),
});

/** What determines a restore, fixed once. The chain is newest first and ends with the full backup. */
const RestorePlan = z.object({
  version,
  backupId: z.guid(),
  volumeId: z.guid(),
  backend: text,
  chain: z.array(StoredLink).min(1),
  /** An existing volume keeps its data beyond the backup's length. */
  keepTail: z.boolean(),
  /** The target's exact length in bytes. */
  targetBytes: size,
  rangeBytes: length,
  /** The private file that the ranges write to, set when they are released. Each claim of the plan creates its own: see restoreTargetOf. */
  target: text.nullable(),
  /** Whether slices of the map are staged in the repository; absent until that is known. */
  staged: z.boolean().exactOptional(),
  /** What the chain says about its volume; null until it has been read. */
  stored: z
    .object({
      name: text.nullable(),
      description: text.nullable(),
      metadata: z.record(z.string(), text).nullable(),
      bootable: z.boolean(),
      imageMetadata: z.record(z.string(), text).nullable().exactOptional(),
    })
    .nullable(),
  /** Where another service has the volume: by what it was reserved, and whether it was made for this restore. */
  held: z.object({ hold: text, isNew: z.boolean() }).exactOptional(),
});

/**
 * Of a backup or restore beside a service that has the volumes. `beside`: the backend. Of a restore, `hold` is what the volume is reserved
 * by; it is missing until the request has reserved it. `nothingHeld`: the service refused, so there is nothing to release. `force`: that the
 * volume may be in use, for a retry.
 */
const BackupInput = z.object({ version, volume: SeenVolume.exactOptional(), force: z.literal(true).exactOptional() });
const RestoreInput = z.object({
  version,
  newVolume: z.boolean(),
  beside: text.exactOptional(),
  volume: SeenVolume.exactOptional(),
  hold: text.exactOptional(),
  nothingHeld: z.literal(true).exactOptional(),
});

/**
 * quick: listings and sizes against the metadata. deep: also reads every byte that a restore would, and checks every hash. drill: a restore
 * test, a whole restore into a private file of a volume backend that is read back, compared with the hashes and removed.
 */
export const verifyModes = ["quick", "deep", "drill"] as const;
export type VerifyMode = (typeof verifyModes)[number];

/** What determines a verification, fixed once. The chain is newest first and ends with the full backup. */
const VerifyPlan = z.object({
  version,
  backupId: z.guid(),
  mode: z.enum(verifyModes),
  chain: z.array(StoredLink).min(1),
  /**
   * Where a restore test restores to. It is not a volume: it has no row, so no project sees it and no quota counts it. `file` is the private
   * file, set when the ranges are released; see restoreTargetOf.
   */
  drill: z.object({ backend: text, file: text.nullable() }).nullable(),
  /** Whether slices of the map are staged in the repository; absent until that is known. */
  staged: z.boolean().exactOptional(),
});

/** What determines the new full backup of a squash, fixed once. The chain is newest first and ends with the old full backup. */
const SquashPlan = z.object({
  version,
  backupId: z.guid(),
  chain: z.array(StoredLink).min(2),
  repository: text,
  layout: z.object({
    /** Of its objects; an imported backup's row may have another id. */
    backupId: text,
    volumeId: text,
    container: text,
    prefix: text,
    compression: z.enum(Object.keys(compressionLevels) as [Compression, ...Compression[]]),
    level: z.int(),
    zlibEncoder: z.enum(zlibEncoders),
    objectBytes: length,
    blockBytes: length,
    volumeBytes: size,
    createdAt: text,
    name: text.nullable(),
    description: text.nullable(),
    volumeMeta: text.nullable(),
    parentId: z.null(),
    encrypted: z.boolean(),
  }),
});

/**
 * Clean-up of a squash that has succeeded. `family`: what the backup was built on, itself, and what builds on any of these. Operations on one
 * of them that were there before may read what the backup consisted of.
 */
const SquashTidy = z.object({ version, family: z.array(z.guid()).exactOptional() });

/** A range of a backup: what of it may differ from the parent, see the engine's ChangedParts. Absent: everything is read. */
const CopyRange = z.object({
  version,
  changed: z.object({ grainBytes: length, grains: text }).exactOptional(),
});

/** A range of a restore or verification: where its slice of the merged map is, or what to merge it again with. */
const RestoreRange = z.object({
  version,
  offset: size,
  length: size,
  map: z.union([
    z.object({ name: text, digest: text }),
    z.object({ name: z.null(), digest: text, volumeBytes: size, blockBytes: length }),
  ]),
  objects: size,
});

/** What a copied range reports: enough to seal without reading the volume again. */
const RangeReport = z.object({
  version,
  range: z.object({ offset: size, length: size }),
  objects: size,
  blocks: size,
  bytesRead: size,
  bytesStored: size,
  bytesAdopted: size,
  sourceFingerprint: text,
  listingDigest: text,
  /** Absent from reports of earlier releases. */
  md5Digest: text.nullable().exactOptional(),
  hashesDigest: text,
  entriesDigest: text,
  staged: z.object({ hashes: text, entries: text }).nullable(),
});

/** Of a squash: also how many bytes of the volume were taken as they were stored, and merged. */
const SquashReport = RangeReport.extend({ takenBytes: size, mergedBytes: size });

/** What the plan task and each range of a verification report. */
const VerifyReport = z.object({
  version,
  objects: size,
  blocks: size,
  damaged: z.array(z.object({ object: text, reason: text })),
});

/** Source of a volume's initial bytes. */
const VolumeSource = z.union([z.object({ version, snapshotId: z.guid() }), z.object({ version, volumeId: z.guid() })]);

/**
 * An adoption as accepted. `path` null: the file that is already in the backend under the id. `image`: one that stays where it is, in the
 * driver's own form.
 */
const Adoption = z.object({
  version,
  volumeId: z.guid(),
  path: text.nullable(),
  image: text.nullable().exactOptional(),
  backend: text,
  name: text.nullable(),
});

const RescanInput = z.object({
  version,
  repository: text,
  projectId: text.nullable(),
  ownProjectId: text,
  userId: text,
});

/** Parameters of a pass of the reaper. Nothing younger than `graceMs` is touched. */
const ReapInput = z.object({ version, repository: text, dryRun: z.boolean(), graceMs: z.number().min(0) });

export type BackupPlan = z.infer<typeof BackupPlan>;
export type CopyRange = z.infer<typeof CopyRange>;
export type RestorePlan = z.infer<typeof RestorePlan>;
export type RestoreInput = z.infer<typeof RestoreInput>;
export type SquashPlan = z.infer<typeof SquashPlan>;
export type VerifyPlan = z.infer<typeof VerifyPlan>;
export type VolumeSource = z.infer<typeof VolumeSource>;
export type Adoption = z.infer<typeof Adoption>;
export type RescanInput = z.infer<typeof RescanInput>;
export type ReapInput = z.infer<typeof ReapInput>;

const versionOf = z.object({ version: z.number() });
const issuesMax = 3;

/**
 * A document is checked and returned as it is: what a release that adds to version 1 has put in stays in when it is written back.
 *
 * @throws NewerDocumentError, MalformedDocumentError
 */
function reader<Schema extends z.ZodType>(what: "plan" | "input" | "report", schema: Schema) {
  return (document: Json): z.infer<Schema> => {
    const stated = versionOf.safeParse(document);
    if (stated.success && stated.data.version > documentVersion) {
      throw new NewerDocumentError(what, stated.data.version);
    }
    if (document === null) throw new MalformedDocumentError(what, "there is none");
    const parsed = schema.safeParse(document);
    if (parsed.success) return document as z.infer<Schema>;
    const issues = parsed.error.issues.slice(0, issuesMax);
    throw new MalformedDocumentError(
      what,
      issues.map(({ path, message }) => (path.length === 0 ? message : `${path.join(".")}: ${message}`)).join("; "),
    );
  };
}

/** One reader for each kind of document. */
export const documents = {
  backupPlan: reader("plan", BackupPlan),
  restorePlan: reader("plan", RestorePlan),
  verifyPlan: reader("plan", VerifyPlan),
  squashPlan: reader("plan", SquashPlan),
  /** Of a group restore: set before the first volume is replaced. */
  publishing: reader("plan", z.object({ version, publishing: z.literal(true) })),
  nothing: reader("input", z.object({ version })),
  backupInput: reader("input", BackupInput),
  restoreInput: reader("input", RestoreInput),
  importInput: reader("input", z.object({ version, service: text, url: text })),
  verifyInput: reader("input", z.object({ version, mode: z.enum(verifyModes), backend: text.nullable() })),
  rescanInput: reader("input", RescanInput),
  reapInput: reader("input", ReapInput),
  volumeSource: reader("input", VolumeSource),
  adoption: reader("input", Adoption),
  volumeImport: reader("input", z.object({ version, path: text })),
  /** `overwrite` is absent from exports that an earlier release has accepted: it would have replaced the file. */
  volumeExport: reader("input", z.object({ version, path: text, overwrite: z.boolean().exactOptional() })),
  extension: reader("input", z.object({ version, sizeBytes: length, addedGib: size })),
  groupRestore: reader("input", z.object({ version, instanceId: z.guid(), concludeNeeds: z.array(text) })),
  freezing: reader("input", z.object({ version, instanceId: z.guid(), freeze: z.boolean() })),
  /** Of a freeze: set when the guest is frozen. `thaw`: it is to be thawed. */
  frozen: reader("plan", z.object({ version, frozenAt: text.exactOptional(), thaw: z.boolean().exactOptional() })),
  plugging: reader(
    "input",
    z.object({
      version,
      instanceId: z.guid(),
      attachmentId: z.guid(),
      volumeId: z.guid(),
      snapshotId: z.guid().nullable(),
      active: z.boolean(),
      concludeNeeds: z.array(text),
    }),
  ),
  /** Of an operation on a group that has parts and needs something for its conclusion. */
  concluding: reader("input", z.object({ version, concludeNeeds: z.array(text) })),
  squashTidy: reader("input", SquashTidy),
  copyRange: reader("input", CopyRange),
  restoreRange: reader("input", RestoreRange),
  rangeReport: reader("report", RangeReport),
  squashReport: reader("report", SquashReport),
  verifyReport: reader("report", VerifyReport),
} as const;

/**
 * A document for an ending, which must come to its end whatever the document says: null where this release cannot read it. Without a plan
 * there is no clean-up, since only the plan could say what to remove, and the reaper finds it.
 */
export function readForEnding<Document>(read: (document: Json) => Document, document: Json): Document | null {
  try {
    return document === null ? null : read(document);
  } catch (error) {
    if (error instanceof MalformedDocumentError || error instanceof NewerDocumentError) return null;
    throw error;
  }
}

type Claimed = Pick<ClaimedTask, "kind" | "input" | "operation">;

const ifPlanned = (read: (plan: Json) => unknown, { operation }: Claimed): unknown =>
  operation.plan === null ? null : read(operation.plan);

const inputAlone =
  (read: (input: Json) => unknown) =>
  ({ operation }: Claimed): unknown =>
    read(operation.input);

/** What each kind of task reads. */
const reads: Readonly<Record<TaskKind, (task: Claimed) => unknown>> = {
  "plan-backup": (task) => [documents.backupInput(task.operation.input), ifPlanned(documents.backupPlan, task)],
  copy: ({ operation, input }) => [documents.backupPlan(operation.plan), documents.copyRange(input)],
  seal: ({ operation }) => documents.backupPlan(operation.plan),
  tidy: tidied,
  "plan-restore": (task) => [documents.restoreInput(task.operation.input), ifPlanned(documents.restorePlan, task)],
  restore: ({ operation, input }) => [documents.restorePlan(operation.plan), documents.restoreRange(input)],
  publish: ({ operation }) => documents.restorePlan(operation.plan),
  "remove-backup": inputAlone(documents.nothing),
  "plan-verify": (task) => [documents.verifyInput(task.operation.input), ifPlanned(documents.verifyPlan, task)],
  verify: ({ operation, input }) => [documents.verifyPlan(operation.plan), documents.restoreRange(input)],
  "conclude-verify": ({ operation }) => documents.verifyPlan(operation.plan),
  "plan-squash": (task) => [documents.nothing(task.operation.input), ifPlanned(documents.squashPlan, task)],
  squash: ({ operation }) => documents.squashPlan(operation.plan),
  "seal-squash": ({ operation }) => documents.squashPlan(operation.plan),
  "import-backup": inputAlone(documents.importInput),
  "rescan-repository": inputAlone(documents.rescanInput),
  "reap-repository": inputAlone(documents.reapInput),
  "provision-volume": inputAlone(documents.nothing),
  "import-volume": inputAlone(documents.volumeImport),
  "adopt-volume": inputAlone(documents.adoption),
  "export-volume": inputAlone(documents.volumeExport),
  "clone-volume": inputAlone(documents.volumeSource),
  "extend-volume": inputAlone(documents.extension),
  "remove-volume": inputAlone(documents.nothing),
  "take-snapshot": inputAlone(documents.nothing),
  "remove-snapshot": inputAlone(documents.nothing),
  "snapshot-group": inputAlone(documents.nothing),
  "conclude-group": concluded,
};

function tidied({ operation, input }: Claimed): unknown {
  switch (operation.kind) {
    case "backup-create":
      return documents.backupPlan(operation.plan);
    case "backup-restore":
      return operation.plan === null ? documents.restoreInput(operation.input) : documents.restorePlan(operation.plan);
    case "backup-verify":
      return documents.verifyPlan(operation.plan);
    case "backup-squash":
      return [documents.squashPlan(operation.plan), documents.squashTidy(input)];
    default:
      return documents.nothing(operation.input);
  }
}

function concluded(task: Claimed): unknown {
  const { kind, input } = task.operation;
  switch (kind) {
    case "group-restore":
    case "group-revert":
      return [documents.groupRestore(input), ifPlanned(documents.publishing, task)];
    case "group-freeze":
      return [documents.freezing(input), ifPlanned(documents.frozen, task)];
    case "group-plug":
      return documents.plugging(input);
    case "group-delete":
      return documents.concluding(input);
    default:
      return documents.nothing(input);
  }
}

/**
 * Reads everything that a claimed task is to follow, before any of it is followed.
 *
 * @throws MalformedDocumentError, NewerDocumentError
 */
export function checkDocuments(task: Claimed): void {
  reads[task.kind](task);
}
