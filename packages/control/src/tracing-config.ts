import { z } from "zod";
import { shown } from "./settings.ts";

/** Where traces go. */
export const Tracing = z.strictObject({
  /** Of a collector that takes OTLP over HTTP, with its path. */
  endpoint: z.url({ protocol: /^https?$/, error: "must be an http or https URL, with the path /v1/traces" }),
  /** Sent with every request to it. */
  headers: z.record(z.string().min(1), z.string()).default({}),
  /** The part of all traces that is recorded. */
  sample_ratio: z.number().min(0).max(1).default(1),
  service_name: z.string().min(1).register(shown).default("tephra"),
});

export type TracingConfig = z.infer<typeof Tracing>;
