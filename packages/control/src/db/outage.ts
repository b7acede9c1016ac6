/** Prisma's codes for a server that cannot be reached, does not respond or has no free connection. */
const prismaCodes = new Set([
  "P1000",
  "P1001",
  "P1002",
  "P1003",
  "P1008",
  "P1010",
  "P1011",
  "P1017",
  "P2024",
  "P2028",
  "P2037",
]);

/** SQLSTATE classes 08 (connection), 28 (not let in), 57P0x (shutting down, starting up), 53 (out of resources); no such database. */
const sqlState = /^(08...|28...|3D000|57P0[1-5]|53...)$/;

const systemCodes = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ENOTFOUND",
  "ENOENT",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "EAI_AGAIN",
]);

const adapterKinds = new Set([
  "DatabaseNotReachable",
  "ConnectionClosed",
  "SocketTimeout",
  "TooManyConnections",
  "DatabaseDoesNotExist",
  "AuthenticationFailed",
  "TlsConnectionError",
]);

/** The driver's messages, without a code, about a connection that was closed or could not be opened. */
const driverTexts = new RegExp(
  [
    "Connection terminated",
    "terminating connection due to",
    "a connection error and is not queryable",
    "timeout exceeded when trying to connect",
    "Can't reach database server",
    "Server has closed the connection",
  ].join("|"),
);

interface Layer {
  codes: string[];
  kind: unknown;
  message: unknown;
}

/** An error and its causes, at most eight deep. Prisma keeps its driver's error in `meta`. */
function layersOf(error: unknown): Layer[] {
  const layers: Layer[] = [];
  let current = error;
  while (layers.length < 8 && typeof current === "object" && current !== null) {
    const { code, originalCode, kind, message, cause, meta } = current as Record<string, unknown>;
    layers.push({ codes: [code, originalCode].filter((c) => typeof c === "string"), kind, message });
    current = cause ?? (meta as Record<string, unknown> | undefined)?.["driverAdapterError"];
  }
  return layers;
}

/** Whether PostgreSQL could not be asked, as opposed to having refused what it was asked. */
export function isDatabaseOutage(error: unknown): boolean {
  return layersOf(error).some(
    ({ codes, kind, message }) =>
      codes.some((c) => prismaCodes.has(c) || systemCodes.has(c) || sqlState.test(c)) ||
      (typeof kind === "string" && adapterKinds.has(kind)) ||
      (typeof message === "string" && driverTexts.test(message)),
  );
}

/**
 * Serialization failure (including our own) and deadlock, by PostgreSQL's and Prisma's codes: nothing was done, so the same may be retried.
 */
const retryableCodes = new Set(["40001", "40P01", "P2034"]);

/** By codes only: a message may quote anything. */
export const isRetryableConflict = (error: unknown): boolean =>
  layersOf(error).some(({ codes }) => codes.some((c) => retryableCodes.has(c)));

/** SQLSTATEs of transient errors: classes 40 (conflicts) and 57 (operator intervention), and a lock timeout. */
const passing = /^(40...|57...|55P03|25P0[34]|P2034)$/;

/** Whether the database refused only for now: the same may succeed on the next attempt. */
export const mayPass = (error: unknown): boolean =>
  isDatabaseOutage(error) || layersOf(error).some(({ codes }) => codes.some((c) => passing.test(c)));

/** Something was unavailable: a lock, a connection, the server. A statement timeout is left out: it would take as long again. */
const busyCode = /^(08...|57P0[1-5]|53...|55P03|P2024)$/;

/**
 * Whether the database is the cause of an error, where other servers are involved as well: judged only by what it and its client report.
 */
export const isDatabaseBusy = (error: unknown): boolean =>
  layersOf(error).some(
    ({ codes, message }) =>
      codes.some((c) => busyCode.test(c)) ||
      (codes.includes("P2028") && String(message).includes("Unable to start a transaction")),
  );
