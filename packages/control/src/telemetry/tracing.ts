import type { Config } from "../config.ts";
import type { SpanOptions, Tracing } from "./open-telemetry.ts";

/**
 * Traces, by OpenTelemetry (`tracing` in the configuration). Its packages are loaded only where that is configured; everywhere else the
 * functions below do nothing.
 *
 * A trace goes with the work: what runs is the current span of the asynchronous context; a task's row has the span that added the task, its
 * job too, and the process that claims the task goes on from there.
 *
 * Of the process, as the context that it follows is.
 */
let tracing: Tracing | null = null;

/** Once per process, before it serves anything. Null: not configured. */
export async function startTracing(config: Config, program: string): Promise<Tracing | null> {
  if (config.tracing === null) return null;
  const { openTracing } = await import("./open-telemetry.ts");
  tracing = openTracing(config.tracing, { program, host: config.hostName });
  return tracing;
}

export const currentTrace = (): string | null => tracing?.current() ?? null;

export const traced = <T>(span: SpanOptions, work: () => Promise<T>): Promise<T> =>
  tracing === null ? work() : tracing.within(span, work);

/** Of a log line: the trace that it belongs to, if that is recorded. */
export function traceFields(): { trace_id?: string } {
  const [, trace, , flags] = currentTrace()?.split("-") ?? [];
  return trace !== undefined && flags === "01" ? { trace_id: trace } : {};
}
