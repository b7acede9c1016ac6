import { z } from "zod";
import { metadata, strict, strippedText, text, uuid } from "../openstack/fields.ts";
import { pythonRepr } from "../openstack/python-text.ts";

const wordsTrue = ["true", "1", "t", "on", "y", "yes"];
const wordsFalse = ["false", "0", "f", "off", "n", "no"];

/** A JSON boolean or a word for one, case-insensitive; false when omitted. */
const switched = () =>
  z
    .union([z.boolean(), z.string()], { error: ({ input }) => `${pythonRepr(input)} is not a boolean.` })
    .optional()
    .transform((value, context) => {
      if (value === undefined || typeof value === "boolean") return value ?? false;
      const word = value.toLowerCase();
      if (wordsTrue.includes(word)) return true;
      if (!wordsFalse.includes(word)) {
        context.addIssue({ code: "custom", message: `${pythonRepr(value)} is not a boolean.` });
      }
      return false;
    });

const name = () => text().min(1, { error: "'' is too short" });

const Backup = strict({
  instance_id: uuid(),
  name: name(),
  async: switched(),
  description: strippedText(),
  incremental: switched(),
  force: switched(),
  metadata: metadata(),
});
/** The first three are the API's; the others are ours. Disks in use need no `force`: it is accepted and ignored. */
export const backupBody = () => Backup;

const Named = strict({ instance_id: uuid(), group_snapshot_id: uuid(), name: name(), async: switched() });
/** Which backup of which instance. `async` is ours: deletion has none in the original API. */
export const namedBackupBody = () => Named;
