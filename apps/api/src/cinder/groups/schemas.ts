import { z } from "zod";
import {
  changedText,
  optionalFlag,
  optionalText,
  strict,
  strippedText,
  text,
  typePhrase,
  uuid,
} from "../../openstack/fields.ts";
import { pythonRepr } from "../../openstack/python-text.ts";
import { statusWord } from "../volumes/fields.ts";

/** Bodies for volume groups, group types and group snapshots. */

const someText = () => text().min(1, { error: "'' is too short" });

const CreateGroup = strict({
  group: strict({
    name: strippedText(),
    description: strippedText(),
    group_type: someText(),
    volume_types: z
      .array(someText(), { error: typePhrase("array") })
      .min(1, { error: "[] is too short" })
      .max(255)
      .refine((types) => new Set(types).size === types.length, {
        error: (issue) => `${pythonRepr(issue.input)} has non-unique elements`,
      }),
    availability_zone: optionalText(),
  }),
});
export const createGroupBody = () => CreateGroup;

/** Comma-separated ids. */
const ids = () =>
  z
    .string({ error: typePhrase("string", "null") })
    .max(100_000, { error: "the list of ids is too long" })
    .nullish()
    .transform((value) => [...new Set((value ?? "").split(",").map((id) => id.trim()))].filter(Boolean));

const changed = { name: changedText(), description: changedText(), add_volumes: ids(), remove_volumes: ids() };
const UpdateGroup = strict({ group: strict(changed) });
export const updateGroupBody = () => UpdateGroup;

const DeleteGroup = strict({ delete: strict({ "delete-volumes": optionalFlag() }) });
export const deleteGroupBody = () => DeleteGroup;

const tuple = (words: readonly string[]): string => `[${words.map(pythonRepr).join(", ")}]`;

const groupStatuses = ["error", "available", "creating", "deleting", "deleted", "updating", "in-use", "error_deleting"];
const ResetGroup = strict({
  reset_status: strict({
    status: statusWord({ subject: "Group status", words: groupStatuses, shown: tuple(groupStatuses) }),
  }),
});
export const resetGroupBody = () => ResetGroup;

const sources = { group_snapshot_id: uuid().optional(), source_group_id: uuid().optional() };
type Sources = z.infer<z.ZodObject<typeof sources>>;

/** Exactly one source; anything else is refused with the message of Cinder's `oneOf`. */
function withSource<Body extends Sources>(body: Body, context: z.core.$RefinementCtx) {
  const { group_snapshot_id: groupSnapshotId, source_group_id: sourceGroupId, ...rest } = body;
  if (groupSnapshotId !== undefined && sourceGroupId === undefined) return { ...rest, source: { groupSnapshotId } };
  if (sourceGroupId !== undefined && groupSnapshotId === undefined) return { ...rest, source: { sourceGroupId } };
  const sent = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined && value !== null));
  const why =
    groupSnapshotId === undefined
      ? "not valid under any of the given schemas"
      : "valid under each of {'required': ['source_group_id']}, {'required': ['group_snapshot_id']}";
  context.addIssue({ code: "custom", message: `${pythonRepr(sent)} is ${why}` });
  return z.NEVER;
}

const CreateFromSource = strict({
  "create-from-src": strict({ name: strippedText(), description: strippedText(), ...sources }).transform(withSource),
});
export const createFromSourceBody = () => CreateFromSource;

const CreateGroupSnapshot = strict({
  group_snapshot: strict({ group_id: uuid(), name: strippedText(), description: strippedText() }),
});
export const createGroupSnapshotBody = () => CreateGroupSnapshot;

const snapshotStatuses = groupStatuses.filter((status) => status !== "in-use");
const ResetGroupSnapshot = strict({
  reset_status: strict({
    status: statusWord({ subject: "Group snapshot status", words: snapshotStatuses, shown: tuple(snapshotStatuses) }),
  }),
});
export const resetGroupSnapshotBody = () => ResetGroupSnapshot;

const specs = () => z.record(someText(), text(), { error: typePhrase("object") });

const CreateGroupType = strict({
  group_type: strict({
    name: someText(),
    description: optionalText(),
    is_public: optionalFlag(),
    group_specs: specs().optional(),
  }),
});
export const createGroupTypeBody = () => CreateGroupType;

const UpdateGroupType = strict({
  group_type: strict({
    name: someText().optional(),
    description: text().nullish(),
    is_public: optionalFlag(),
  }),
});
export const updateGroupTypeBody = () => UpdateGroupType;

const GroupSpecs = strict({ group_specs: specs() });
export const groupSpecsBody = () => GroupSpecs;

const OneSpec = specs().refine((all) => Object.keys(all).length === 1, {
  error: "Request body contains too many items.",
});
export const oneSpecBody = () => OneSpec;
