import { z } from "zod";
import { time } from "./fields.ts";

/** At most what Keystone or an administrator could have given out. */
const token = z.string().min(1).max(8_192);
const name = z.string().min(1).max(255);

/**
 * What a browser signs in with: a token of the configuration; a user of Keystone; or, being signed in at Keystone, another project of the same
 * user. `passcode`: of the user's second factor, once it was asked for.
 */
export const SignIn = z.union([
  z.strictObject({ token }),
  z.strictObject({
    user: name,
    password: z.string().min(1).max(4_096),
    user_domain: name.default("Default"),
    project: name,
    project_domain: name.default("Default"),
    passcode: z
      .string()
      .regex(/^\d{6,8}$/, "is not a passcode of 6 to 8 digits")
      .optional(),
  }),
  z.strictObject({ other_project_id: name }),
]);
export type SignIn = z.input<typeof SignIn>;

/** Who asks, and what they may do here. `may`: the rules of the routes that this caller may use. `expires_at` null: never by itself. */
export const Session = z
  .object({
    mode: z.enum(["none", "static", "keystone"]),
    user_id: z.string(),
    project_id: z.string(),
    roles: z.array(z.string()),
    may: z.array(z.string()),
    /** That the user may change to. */
    projects: z.array(z.object({ id: z.string(), name: z.string() })),
    expires_at: time.nullable(),
    /** After which a browser that nobody uses signs out. */
    idle_minutes: z.number().int(),
    server: z.object({ version: z.string(), now: time }),
  })
  .meta({ id: "Session" });
export type Session = z.infer<typeof Session>;
