import type { AttachMode, Connector } from "@tephra/control";
import { z } from "zod";
import { byVersion, isStorable, strict, typePhrase, uuid } from "../../openstack/fields.ts";
import { since } from "../../openstack/microversions.ts";
import { pythonRepr } from "../../openstack/python-text.ts";
import { required } from "./fields.ts";

/** Bodies for attachments: from 3.27 on, with a mode from 3.54 on. */

type Json = Connector["whole"][string];

/** Whether the database can store every string in it. */
function isKept(value: unknown): boolean {
  if (typeof value === "string") return isStorable(value);
  if (typeof value !== "object" || value === null) return true;
  return Object.entries(value).every(([key, part]) => isStorable(key) && isKept(part));
}

const shortText = (value: Json | undefined): string | null =>
  typeof value === "string" && value.length <= 255 ? value : null;

const modeOf = (value: Json | undefined): AttachMode | null => (value === "ro" || value === "rw" ? value : null);

const connectorOf = (whole: Record<string, unknown>): Connector => {
  const { host, mountpoint, mode } = whole as Connector["whole"];
  return {
    host: shortText(host),
    mountpoint: shortText(mountpoint),
    mode: modeOf(mode),
    whole: whole as Connector["whole"],
  };
};

const connector = (...types: string[]) =>
  z
    .looseObject({}, { error: typePhrase(...types) })
    .refine(isKept, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` });

/** A connector. None, or an empty one, only reserves the volume. */
const optionalConnector = () =>
  connector("object", "null")
    .nullish()
    .transform((value) => (value && Object.keys(value).length > 0 ? connectorOf(value) : null));

const created = { volume_uuid: uuid(), instance_uuid: uuid().optional(), connector: optionalConnector() };
const mode = z
  .string({ error: typePhrase("string") })
  .refine((value) => value === "rw" || value === "ro", {
    error: (i) => `${pythonRepr(i.input)} is not one of ['rw', 'ro']`,
  })
  .optional()
  .transform((value) => modeOf(value));

export interface CreateAttachmentBody {
  attachment: {
    volume_uuid: string;
    instance_uuid?: string | undefined;
    connector: Connector | null;
    mode?: AttachMode | null;
  };
}

export const createAttachmentBody = byVersion<z.ZodType<CreateAttachmentBody>>([
  [0, strict({ attachment: strict(created) })],
  [since.attachmentMode, strict({ attachment: strict({ ...created, mode }) })],
]);

const UpdateAttachment = strict({
  attachment: strict({
    connector: required(
      connector("object")
        .refine((value) => Object.keys(value).length > 0, { error: "{} does not have enough properties" })
        .transform(connectorOf),
    ),
  }),
});
export const updateAttachmentBody = () => UpdateAttachment;
