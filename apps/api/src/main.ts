import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer, Server as TlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { type Config, ConfigError, type Logger } from "@tephra/control";
import {
  type Certificates,
  joinElection,
  loadConfig,
  logCrash,
  logVitals,
  openCertificates,
  openLog,
  startReconciler,
  startTracing,
  tellStrayTimes,
} from "@tephra/control/process";
import { buildApp } from "./app.ts";
import { openContext } from "./context.ts";

/** How long a stopping process waits for running requests. */
const drainMs = 8_000;
/** How long it waits for servers that do not respond. */
const stopMaxMs = 9_000;

function configOrExit(): Config {
  try {
    return loadConfig();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    for (const { key, problem } of error.problems) process.stderr.write(`${key}: ${problem}\n`);
    process.exit(2);
  }
}

/** The certificate of the HTTPS listener; without one the process does not start. */
async function certificatesOrExit(config: Config, log: Logger): Promise<Certificates> {
  try {
    return await openCertificates(config, log);
  } catch (error) {
    process.stderr.write(`tls: ${(error as Error).message}\n`);
    process.exit(2);
  }
}

/** Time limit for a request including its body; with the check every half second, it is cut off within 15 s. */
const arrivalMaxMs = 14_000;

/** Limits that keep a slow or idle client from holding a socket forever. */
const limits = {
  requestTimeout: arrivalMaxMs,
  headersTimeout: arrivalMaxMs,
  keepAliveTimeout: 65_000,
  connectionsCheckingInterval: 500,
};

/** HTTP, or HTTPS with a certificate. */
function openServer(handler: ReturnType<typeof buildApp>, certificates: Certificates | null): Server {
  const tls =
    certificates && createTlsServer({ ...limits, ...certificates.current, handshakeTimeout: arrivalMaxMs }, handler);
  if (tls) certificates?.onChange((certificate) => tls.setSecureContext(certificate));
  const server: Server = tls ?? createServer(limits, handler);
  server.maxConnections = 4_096;
  // Clients of oVirt expect 201-created or 202-accepted; Node would answer every expectation but 100-continue with 417 itself.
  server.on("checkExpectation", (req: IncomingMessage, res: ServerResponse) => {
    if (/^20[12]-\w+$/.test(req.headers.expect ?? "")) handler(req, res);
    else res.writeHead(417, { "content-length": 0 }).end();
  });
  return server;
}

function urlOf(server: Server): string {
  const { address, family, port } = server.address() as AddressInfo;
  return `${server instanceof TlsServer ? "https" : "http"}://${family === "IPv6" ? `[${address}]` : address}:${port}`;
}

const config = configOrExit();
const log = openLog(config, "api");
logCrash(log);
logVitals(log, config.vitals_ms);
const tracing = await startTracing(config, "api");
const certificates = config.tls.port === null ? null : await certificatesOrExit(config, log);
const context = openContext(config, log, certificates);
const app = buildApp(context);
const servers = [
  { server: openServer(app, null), port: config.port, host: config.host },
  ...(certificates
    ? [{ server: openServer(app, certificates), port: config.tls.port ?? 0, host: config.tls.host ?? config.host }]
    : []),
];
void tellStrayTimes(context.database, log);
const election = joinElection({
  database: context.health,
  log,
  id: `${config.hostName}:${process.pid}:${randomUUID()}`,
  roles: ["reconciler"],
});
const reconciler = startReconciler({ database: context.database, config, log, election });

/** Stops accepting connections, lets running requests finish, then exits; a second signal exits at once. */
let stopping = false;
async function stop(signal: NodeJS.Signals): Promise<void> {
  if (stopping) process.exit(1);
  stopping = true;
  log.info({ event: "stopping", signal }, "stopping");
  setTimeout(() => process.exit(1), stopMaxMs);
  context.events.end();
  const each = (work: (server: Server) => void) => () => {
    for (const { server } of servers) work(server);
  };
  const timer = setTimeout(
    each((server) => server.closeAllConnections()),
    drainMs,
  );
  // A connection that was busy when the server closed stays open after its response unless closed explicitly.
  const sweep = setInterval(
    each((server) => server.closeIdleConnections()),
    50,
  );
  const closed = servers.map(({ server }) => new Promise((resolve) => server.close(resolve)));
  await Promise.all([...closed, reconciler.stop(), election.stop()]);
  clearTimeout(timer);
  clearInterval(sweep);
  await Promise.all([context.database.$disconnect(), context.health.$disconnect(), tracing?.stop()]);
  process.exit(0);
}

process.on("SIGTERM", (signal) => void stop(signal));
process.on("SIGINT", (signal) => void stop(signal));
for (const { server, port, host } of servers) {
  server.on("error", (error) => {
    log.fatal({ event: "listen.failed", reason: error.message, host, port }, "cannot listen");
    process.exit(1);
  });
  server.listen(port, host, () => log.info({ event: "listening", url: urlOf(server) }, "listening"));
}
