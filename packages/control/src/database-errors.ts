/** Prisma's codes for a server that cannot be reached, does not answer or has no free connection. */
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

/** SQLSTATE classes 08 (connection), 57P0x (shutting down, starting up), 53 (out of resources). */
const sqlState = /^(08...|57P0[1-5]|53...)$/;

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

/** What the driver says, without a code, of a connection that ended or never began. */
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

/** Whether Postgres could not be asked, as against having refused what it was asked. Looks through causes, at most eight deep. */
export function isDatabaseOutage(error: unknown): boolean {
  let current = error;
  for (let depth = 0; depth < 8 && typeof current === "object" && current !== null; depth += 1) {
    const { code, originalCode, kind, message, cause, meta } = current as Record<string, unknown>;
    const codes = [code, originalCode].filter((c) => typeof c === "string");
    if (codes.some((c) => prismaCodes.has(c) || systemCodes.has(c) || sqlState.test(c))) return true;
    if (typeof kind === "string" && adapterKinds.has(kind)) return true;
    if (typeof message === "string" && driverTexts.test(message)) return true;
    current = cause ?? (meta as Record<string, unknown> | undefined)?.["driverAdapterError"];
  }
  return false;
}
