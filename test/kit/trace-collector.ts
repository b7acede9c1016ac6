import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

/** A span as OTLP's JSON has it. `kind`: 2 server, 3 client, 4 producer, 5 consumer, else internal. */
export interface CollectedSpan {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  /** `tephra.program` of the process. */
  program: string;
  attributes: Record<string, string | number | boolean>;
}

export interface TraceCollector extends AsyncDisposable {
  readonly endpoint: string;
  readonly spans: readonly CollectedSpan[];
  /** Headers of the last request. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
}

interface Attribute {
  key: string;
  value: Record<string, string | number | boolean>;
}
interface Export {
  resourceSpans: {
    resource: { attributes: Attribute[] };
    scopeSpans: { spans: (Omit<CollectedSpan, "attributes" | "program"> & { attributes: Attribute[] })[] }[];
  }[];
}

const valuesOf = (attributes: readonly Attribute[]): CollectedSpan["attributes"] =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0] ?? ""]));

/** Takes traces by OTLP over HTTP, as JSON, and keeps them. */
export async function startTraceCollector(): Promise<TraceCollector> {
  const spans: CollectedSpan[] = [];
  let headers: TraceCollector["headers"] = {};
  const server = createServer(async (req, res) => {
    const body = Buffer.concat(await req.toArray()).toString();
    headers = req.headers;
    for (const { resource, scopeSpans } of (JSON.parse(body) as Export).resourceSpans) {
      const program = String(valuesOf(resource.attributes)["tephra.program"]);
      for (const span of scopeSpans.flatMap((scope) => scope.spans)) {
        spans.push({ ...span, program, attributes: valuesOf(span.attributes) });
      }
    }
    res.writeHead(200, { "content-type": "application/json" }).end("{}");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    endpoint: `http://127.0.0.1:${port}/v1/traces`,
    spans,
    get headers() {
      return headers;
    },
    [Symbol.asyncDispose]: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}
