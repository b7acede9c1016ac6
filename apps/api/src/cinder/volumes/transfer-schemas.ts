import { z } from "zod";
import { byVersion, flag, isStorable, strict, typePhrase, uuid } from "../../openstack/fields.ts";
import { since } from "../../openstack/microversions.ts";
import { pythonRepr } from "../../openstack/python-text.ts";
import { required } from "./fields.ts";

/** Bodies for volume transfers. */

const unnamed = (message: string) =>
  ({ code: "custom", message: `Invalid name: ${message}`, params: { whole: true } }) as const;

/** Null means no name; an empty one is refused, as in Cinder. */
const name = z
  .string({ error: typePhrase("string", "null") })
  .refine(isStorable, { error: (i) => `${pythonRepr(i.input)} has characters that cannot be stored` })
  .nullish()
  .transform((value, context) => {
    const text = value?.trim() ?? null;
    if (value === "") context.addIssue(unnamed("The 'name' can not be None."));
    else if (text === "") context.addIssue(unnamed("The 'name' can not be empty."));
    else if ([...(text ?? "")].length > 255) {
      context.addIssue(unnamed("The 'name' can not be greater than 255 characters."));
    }
    return text;
  });

const offered = { volume_id: uuid(), name };

export interface CreateTransferBody {
  transfer: { volume_id: string; name: string | null; no_snapshots?: boolean };
}

const Plain = strict({ transfer: strict(offered) }) as z.ZodType<CreateTransferBody>;
/** For `os-volume-transfer`: always includes the snapshots. */
export const createPlainTransferBody = () => Plain;

/** For `volume-transfers`. */
export const createTransferBody = byVersion<z.ZodType<CreateTransferBody>>([
  [0, Plain],
  [since.transferSnapshots, strict({ transfer: strict({ ...offered, no_snapshots: flag() }) })],
]);

const AcceptTransfer = strict({
  accept: strict({
    auth_key: required(
      z.union([z.string(), z.int()], { error: typePhrase("string", "integer") }).transform((key) => String(key)),
    ),
  }),
});
export const acceptTransferBody = () => AcceptTransfer;
