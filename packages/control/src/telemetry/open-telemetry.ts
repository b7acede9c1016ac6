import { createRequire, syncBuiltinESMExports } from "node:module";
import {
  type Attributes,
  type Context,
  context,
  isSpanContextValid,
  propagation,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { HttpInstrumentation } from "@opentelemetry/instrumentation-http";
import { UndiciInstrumentation } from "@opentelemetry/instrumentation-undici";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  BatchSpanProcessor,
  ParentBasedSampler,
  type Sampler,
  SamplingDecision,
  type SpanProcessor,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from "@opentelemetry/sdk-trace";
import type { TracingConfig } from "../tracing-config.ts";

/** What the rest of a process sees of it. */
export interface Tracing {
  /** The current span, as W3C's `traceparent`, which also says whether it is recorded; null: there is none. */
  current(): string | null;
  /** Runs `work` in a span below the current one if that is of the trace of `parent`, else below `parent`; without one it begins a trace. */
  within<T>(span: SpanOptions, work: () => Promise<T>): Promise<T>;
  /** Sends what has ended; settles within a few seconds, whether the collector answers or not. */
  stop(): Promise<void>;
}

export interface SpanOptions {
  name: string;
  parent: string | null;
  attributes: Readonly<Record<string, string | number>>;
}

/** Of all spans that this module begins itself. */
const ownKey = "tephra.task";
/** Asked by machines every few seconds. */
const quiet = new Set(["/healthz", "/readyz", "/metrics", "/healthcheck"]);
const stopMaxMs = 3_000;

/**
 * Which traces are recorded: a part (`ratio`) of those that a request or a task begins. Nothing else begins one: a queue that is idle, or a
 * probe, is no work. What a client says of its own trace is followed, but whether ours is recorded is not for clients to decide.
 */
function samplerOf(ratio: number): Sampler {
  const part = new TraceIdRatioBasedSampler(ratio);
  const root: Sampler = {
    shouldSample(parent, traceId, _name, kind, attributes) {
      if (kind !== SpanKind.SERVER && attributes[ownKey] === undefined)
        return { decision: SamplingDecision.NOT_RECORD };
      return part.shouldSample(parent, traceId);
    },
    toString: () => `work(${ratio})`,
  };
  return new ParentBasedSampler({
    root,
    remoteParentSampled: {
      // The trace goes on from a task's row or job; from a client it begins here.
      shouldSample: (parent, traceId, _name, kind) =>
        kind === SpanKind.SERVER
          ? part.shouldSample(parent, traceId)
          : { decision: SamplingDecision.RECORD_AND_SAMPLED },
      toString: () => "work-of-ours",
    },
  });
}

/** Queries may have passwords (logins of oVirt's API) or signatures: they are not sent. */
const withoutQueries: SpanProcessor = {
  onStart(span) {
    for (const key of ["url.query", "url.full"] as const) {
      const value = span.attributes[key];
      if (typeof value === "string") span.setAttribute(key, key === "url.query" ? "" : value.replace(/\?.*$/s, ""));
    }
  },
  onEnd() {},
  forceFlush: async () => {},
  shutdown: async () => {},
};

const spanContextOf = (parent: string): Context => propagation.extract(context.active(), { traceparent: parent });

const currentSpan = (): Span | undefined => trace.getSpan(context.active());

/** W3C's `traceparent` of a span, recorded or not: what is not, is not anywhere. */
function parentOf(span: Span | undefined): string | null {
  const of = span?.spanContext();
  if (of === undefined || !isSpanContextValid(of)) return null;
  return `00-${of.traceId}-${of.spanId}-0${of.traceFlags.toString(16)}`;
}

/** Requests that come and go are spans by the maintained instrumentations, which change Node's modules in place: once per process. */
function instrumentHttp(provider: TracerProvider): void {
  const http = new HttpInstrumentation({
    ignoreIncomingRequestHook: ({ url = "" }) => quiet.has(url),
    requireParentforOutgoingSpans: true,
  });
  http.setTracerProvider(provider);
  const undici = new UndiciInstrumentation({ requireParentforSpans: true });
  undici.setTracerProvider(provider);
  // They change what is required from now on; the names that modules have imported follow.
  const require = createRequire(import.meta.url);
  require("node:http");
  require("node:https");
  syncBuiltinESMExports();
}

export function openTracing(
  { endpoint, headers, sample_ratio: ratio, service_name: service }: TracingConfig,
  { program, host }: { program: string; host: string },
): Tracing {
  const exporter = new OTLPTraceExporter({ url: endpoint, headers: { ...headers } });
  const attributes: Attributes = { "service.name": service, "service.instance.id": `${host}:${process.pid}` };
  const provider = new TracerProvider({
    resource: resourceFromAttributes({ ...attributes, "tephra.program": program }),
    sampler: samplerOf(ratio),
    spanProcessors: [withoutQueries, new BatchSpanProcessor({ exporter })],
  });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  trace.setGlobalTracerProvider(provider);
  instrumentHttp(provider);
  const tracer = provider.getTracer("tephra");

  const begin = ({ name, parent, attributes }: SpanOptions): Span => {
    const here = currentSpan();
    const isOfTrace = here !== undefined && parent?.includes(here.spanContext().traceId) === true;
    const above = here?.isRecording() ? context.active() : trace.deleteSpan(context.active());
    const under = isOfTrace ? context.active() : parent === null ? above : spanContextOf(parent);
    return tracer.startSpan(name, { kind: SpanKind.INTERNAL, attributes: { ...attributes, [ownKey]: name } }, under);
  };
  return {
    current: () => parentOf(currentSpan()),
    async within(options, work) {
      const span = begin(options);
      try {
        return await context.with(trace.setSpan(context.active(), span), work);
      } catch (error) {
        span.setStatus({ code: SpanStatusCode.ERROR, message: (error as Error).message });
        throw error;
      } finally {
        span.end();
      }
    },
    async stop() {
      const late = Promise.withResolvers<void>();
      const timer = setTimeout(late.resolve, stopMaxMs);
      await Promise.race([provider.shutdown().catch(() => {}), late.promise]);
      clearTimeout(timer);
    },
  };
}
