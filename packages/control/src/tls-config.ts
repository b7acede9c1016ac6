import { z } from "zod";
import { shown } from "./settings.ts";

const hostName = z
  .string()
  .regex(/^[a-z0-9.-]{1,253}$|^[0-9a-f:.]+$/, "must be a lower-case host name or an address")
  .register(shown);

/** HTTPS of the API, and the authority of our own that its certificate is from, where the operator gives none. */
export const Tls = z
  .strictObject({
    /** Null: no HTTPS. */
    port: z.int().min(0).max(65_535).nullable().default(null),
    /** Null: the API's. */
    host: z.string().min(1).register(shown).nullable().default(null),
    /** Host names and addresses that the certificate is for, beside those that are known. */
    names: z.array(hostName).default([]),
    /** Folder of the authority's key and certificate; null: `tls` in the data folder. */
    ca_dir: z.string().min(1).nullable().default(null),
    /** How long a certificate of our own is valid; another is used after two thirds of that. */
    certificate_days: z.number().positive().max(397).default(90),
    /** PEM files of the operator's certificate, with its chain, and of its key; null: a certificate of our own. */
    certificate_file: z.string().min(1).nullable().default(null),
    private_key_file: z.string().min(1).nullable().default(null),
    /** PEM file of the certificate that signs the operator's; null: clients are told none. */
    ca_file: z.string().min(1).nullable().default(null),
  })
  .prefault({})
  .refine((t) => (t.certificate_file === null) === (t.private_key_file === null), {
    path: ["private_key_file"],
    error: "requires certificate_file, and the other way round",
  })
  .refine((t) => t.ca_file === null || t.certificate_file !== null, {
    path: ["ca_file"],
    error: "requires certificate_file: without one, the certificate is from an authority of our own",
  });
