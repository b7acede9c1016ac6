import { z } from "zod";
import { shown } from "./settings.ts";

/** `$scrypt$ln=15,r=8,p=1$SALT$HASH`: costs that a login can bear, and no less than what is worth the name. */
const passwordHash = z
  .string()
  .regex(
    /^\$scrypt\$ln=1[4-7],r=8,p=[1-4]\$[A-Za-z0-9+/]{22,86}\$[A-Za-z0-9+/]{43,86}$/,
    "must be a hash as `tephra hash-password` writes it",
  );

const User = z.strictObject({
  /** `name@profile`, as clients send it. */
  name: z.string().regex(/^[^\s:@]+(?:@[^\s:@]+)+$/, "must be a name with a profile, such as admin@internal"),
  password_hash: passwordHash,
  project_id: z.string().regex(/^[0-9a-f-]+$/, "may contain only the characters 0-9, a-f and -"),
  roles: z.array(z.enum(["reader", "member", "admin"])).min(1),
});

const objectName = z
  .string()
  .regex(/^[\w. -]{1,255}$/, "may contain letters, digits, spaces and . _ - only")
  .register(shown);

const uniqueNames = (names: readonly string[]): boolean => new Set(names).size === names.length;

/** The API in oVirt's form. Without users nobody can log in to it. */
export const ovirtFields = {
  ovirt: z
    .strictObject({
      users: z
        .array(User)
        .default([])
        .refine((users) => uniqueNames(users.map(({ name }) => name)), "names must be unique"),
      /** How long a token is valid that a client has logged in for. */
      token_seconds: z.int().min(60).max(31_536_000).default(43_200),
      /** How long events are kept. */
      event_days: z.number().positive().default(30),
      data_center: objectName.default("Default"),
      /** Names of the clusters; the first is that of machines which name none. */
      clusters: z.array(objectName).min(1).default(["Default"]).refine(uniqueNames, "names must be unique"),
      /** Names of the networks. */
      networks: z.array(objectName).default(["ovirtmgmt"]).refine(uniqueNames, "names must be unique"),
    })
    .prefault({}),
};
