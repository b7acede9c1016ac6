import { z } from "zod";
import {
  byVersion,
  changedText,
  lenient,
  metadata,
  nullableObject,
  optionalFlag,
  optionalText,
  optionalUuid,
  requiredMetadata,
  strict,
  strippedText,
  text,
  typePhrase,
  uuid,
} from "../../openstack/fields.ts";
import { since } from "../../openstack/microversions.ts";
import { pythonRepr } from "../../openstack/python-text.ts";
import {
  boundedText,
  multiattach,
  optionalStatusWord,
  required,
  requiredFlag,
  spokenText,
  statusWord,
  volumeSize,
  withOneOf,
} from "./fields.ts";

/** Bodies for volumes and snapshots (cinder-api 7.2 to 7.5). */

const names = {
  name: spokenText("name"),
  description: spokenText("description"),
  display_name: spokenText("name"),
  display_description: spokenText("description"),
};

const volumeFields = {
  ...names,
  size: volumeSize("null").nullish(),
  metadata: metadata(),
  availability_zone: boundedText({ min: 1, max: 255 }, "null").nullish(),
  volume_type: optionalText(),
  snapshot_id: optionalUuid(),
  source_volid: optionalUuid(),
  consistencygroup_id: optionalUuid(),
  group_id: optionalText(),
  backup_id: optionalUuid(),
  imageRef: optionalText(),
  image_id: optionalText(),
  multiattach: multiattach(),
};

/** Cinder honours these even before their microversions, without validating them. */
const early = { group_id: optionalText(), backup_id: optionalText() };
/** Hints for a scheduler; ignored. */
const hints = { "OS-SCH-HNT:scheduler_hints": z.looseObject({}, { error: typePhrase("object", "null") }).nullish() };

type VolumeFields = z.infer<z.ZodObject<typeof volumeFields>>;
export interface CreateVolumeBody {
  volume: VolumeFields;
}

export const createVolumeBody = byVersion<z.ZodType<CreateVolumeBody>>([
  [0, strict({ volume: lenient({ ...volumeFields, ...early }), ...hints })],
  [since.volumeFromBackup, strict({ volume: lenient(volumeFields), ...hints })],
  [since.volumeUnknownRefused, strict({ volume: strict(volumeFields), ...hints })],
]);

const fromBackup = {
  backup_id: optionalUuid(),
  size: volumeSize("null").nullish(),
  metadata: metadata(),
  snapshot_id: optionalUuid(),
  source_volid: optionalUuid(),
  imageRef: optionalText(),
};

/** What is ours to know of a new volume from a backup beside a Cinder, which checks the other fields. */
export const createVolumeBesideBody = byVersion([
  [0, z.looseObject({ volume: z.looseObject(fromBackup, { error: typePhrase("object") }) })],
]);

const changedVolume = { ...names, metadata: requiredMetadata().optional() };
type ChangedVolume = z.infer<z.ZodObject<typeof changedVolume>>;
export interface UpdateVolumeBody {
  volume: ChangedVolume;
}

export const updateVolumeBody = byVersion<z.ZodType<UpdateVolumeBody>>([
  [0, strict({ volume: strict(changedVolume) })],
  [
    since.volumeUnknownRefused,
    strict({ volume: strict(changedVolume).superRefine(withOneOf(Object.keys(changedVolume))) }),
  ],
]);

const AttachVolume = strict({
  "os-attach": strict({
    instance_uuid: uuid().optional(),
    host_name: text().optional(),
    mountpoint: boundedText({ min: 1, max: 255 }),
    mode: z.enum(["rw", "ro"], { error: (i) => `${pythonRepr(i.input)} is not one of ['rw', 'ro']` }).optional(),
  }).superRefine(withOneOf(["instance_uuid", "host_name"])),
});
export const attachVolumeBody = () => AttachVolume;

const DetachVolume = strict({ "os-detach": nullableObject({ attachment_id: optionalUuid() }) });
export const detachVolumeBody = () => DetachVolume;

const ForceDetachVolume = strict({
  "os-force_detach": strict({ connector: z.unknown().optional(), attachment_id: optionalText() }),
});
export const forceDetachVolumeBody = () => ForceDetachVolume;

const ExtendVolume = strict({ "os-extend": strict({ new_size: volumeSize() }) });
export const extendVolumeBody = () => ExtendVolume;

const SetBootable = strict({ "os-set_bootable": strict({ bootable: requiredFlag() }) });
export const setBootableBody = () => SetBootable;

const SetReadOnly = strict({ "os-update_readonly_flag": strict({ readonly: requiredFlag() }) });
export const setReadOnlyBody = () => SetReadOnly;

/** Prints strings as a Python tuple or list. */
const tuple = (words: readonly string[]): string => `(${words.map(pythonRepr).join(", ")})`;

const volumeStatuses = [
  "creating",
  "available",
  "deleting",
  "error",
  "error_deleting",
  "error_managing",
  "managing",
  "attaching",
  "in-use",
  "detaching",
  "maintenance",
  "restoring-backup",
  "error_restoring",
  "reserved",
  "awaiting-transfer",
  "backing-up",
  "error_backing-up",
  "error_extending",
  "downloading",
  "uploading",
  "retyping",
  "extending",
];
const attachStatuses = ["attached", "detached"];
const migrationStatuses = ["migrating", "error", "success", "completing", "none", "starting"];
const nothingToReset = "Must specify 'status', 'attach_status' or 'migration_status' for update.";

const ResetVolume = strict({
  "os-reset_status": strict({
    status: optionalStatusWord({ subject: "Volume status", words: volumeStatuses, shown: tuple(volumeStatuses) }),
    attach_status: optionalStatusWord({
      subject: "Volume attach status",
      words: attachStatuses,
      shown: pythonRepr(attachStatuses),
    }),
    migration_status: optionalStatusWord({
      subject: "Volume migration status",
      words: migrationStatuses,
      shown: tuple(migrationStatuses),
    }),
  }).superRefine((reset, context) => {
    if (reset.status ?? reset.attach_status ?? reset.migration_status) return;
    context.addIssue({ code: "custom", message: nothingToReset, params: { whole: true } });
  }),
});
export const resetVolumeBody = () => ResetVolume;

const CreateSnapshot = strict({
  snapshot: strict({
    volume_id: required(optionalUuid()),
    name: strippedText(),
    display_name: strippedText(),
    description: strippedText(),
    metadata: metadata(),
    force: optionalFlag(),
  }),
});
export const createSnapshotBody = () => CreateSnapshot;

const changedSnapshot = {
  name: changedText(),
  description: changedText(),
  display_name: changedText(),
  display_description: changedText(),
};
const UpdateSnapshot = strict({
  snapshot: strict(changedSnapshot).superRefine(withOneOf(Object.keys(changedSnapshot))),
});
export const updateSnapshotBody = () => UpdateSnapshot;

const snapshotStatuses = [
  "error",
  "available",
  "creating",
  "deleting",
  "deleted",
  "updating",
  "error_deleting",
  "unmanaging",
  "backing-up",
  "restoring",
];
const ResetSnapshot = strict({
  "os-reset_status": strict({
    status: statusWord({ subject: "Snapshot status", words: snapshotStatuses, shown: tuple(snapshotStatuses) }),
  }),
});
export const resetSnapshotBody = () => ResetSnapshot;

/** An integer percentage such as `80%`. */
const progress = z.string({ error: typePhrase("string") }).superRefine((value, context) => {
  const number = /^[+-]?\d+$/.test(value.slice(0, -1)) ? Number(value.slice(0, -1)) : null;
  const bounds = number === null ? "" : " between 0 and 100";
  if (value === "" || (number !== null && number >= 0 && number <= 100 && value.endsWith("%"))) return;
  const message = `Invalid input received: progress must be an integer percentage${bounds}`;
  context.addIssue({ code: "custom", message, params: { whole: true } });
});
const SnapshotStatus = strict({
  "os-update_snapshot_status": strict({ status: text(), progress: progress.optional() }),
});
/** Status reported by whoever takes a snapshot. */
export const snapshotStatusBody = () => SnapshotStatus;

const AllMetadata = strict({ metadata: requiredMetadata() });
/** A set of metadata, to be merged or to replace the existing one. */
export const metadataBody = () => AllMetadata;

const OneMetadata = strict({
  meta: requiredMetadata()
    .refine((meta) => Object.keys(meta).length > 0, { error: "{} does not have enough properties" })
    .refine((meta) => Object.keys(meta).length < 2, { error: (i) => `${pythonRepr(i.input)} has too many properties` }),
});
/** One key of a metadata set. */
export const metaBody = () => OneMetadata;
