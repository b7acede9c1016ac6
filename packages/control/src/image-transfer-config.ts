import { z } from "zod";
import { shown } from "./settings.ts";

/** How images are transferred: the processes that serve them (apps/transfer), and the limits of a transfer. */
export const ImageTransfers = z
  .strictObject({
    host: z.string().min(1).register(shown).default("127.0.0.1"),
    port: z.int().min(0).max(65_535).default(54_322),
    /** Scheme, host and port by which clients reach the process of this machine; null: those that it listens on. */
    public_url: z
      .string()
      .regex(/^https?:\/\/[^\s/]+\/?$/, "must be an http:// or https:// URL without a path")
      .transform((url) => url.replace(/\/$/, ""))
      .nullable()
      .default(null),
    /** PEM files of the certificate, with its chain, and of its key; null: without TLS. */
    certificate_file: z.string().min(1).nullable().default(null),
    private_key_file: z.string().min(1).nullable().default(null),
    /** The key from which tickets are derived, the same for the API and every process that serves; null: in the data folder. */
    key_file: z.string().min(1).nullable().default(null),
    /** Concurrent reading, and writing, requests of one transfer. */
    connections_max: z.int().min(1).max(64).default(8),
    /** Where the client does not say how long it may be silent; 0: forever. */
    inactivity_seconds: z.int().min(0).default(60),
    /** A transfer that is paused for longer is cancelled, so that no volume stays locked for good. */
    paused_hours: z.number().positive().default(24),
    /** How long transfers can be looked up after their end. */
    kept_minutes: z.number().min(15).default(60),
  })
  .refine((t) => (t.certificate_file === null) === (t.private_key_file === null), {
    path: ["private_key_file"],
    error: "requires certificate_file, and the other way round",
  });

export type ImageTransfersConfig = z.infer<typeof ImageTransfers>;
