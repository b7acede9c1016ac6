import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type Config, ConfigError } from "@tephra/control";
import {
  joinElection,
  loadConfig,
  logCrash,
  logVitals,
  openLog,
  startReconciler,
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

/** Time limit for a request including its body; with the check every half second, it is cut off within 15 s. */
const arrivalMaxMs = 14_000;

/** Limits that keep a slow or idle client from holding a socket forever. */
function openServer(handler: ReturnType<typeof buildApp>): Server {
  const server = createServer(
    {
      requestTimeout: arrivalMaxMs,
      headersTimeout: arrivalMaxMs,
      keepAliveTimeout: 65_000,
      connectionsCheckingInterval: 500,
    },
    handler,
  );
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
  return `http://${family === "IPv6" ? `[${address}]` : address}:${port}`;
}

const config = configOrExit();
const log = openLog(config, "api");
logCrash(log);
logVitals(log, config.vitals_ms);
const context = openContext(config, log);
const server = openServer(buildApp(context));
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
  const timer = setTimeout(() => server.closeAllConnections(), drainMs);
  // A connection that was busy when the server closed stays open after its response unless closed explicitly.
  const sweep = setInterval(() => server.closeIdleConnections(), 50);
  await Promise.all([new Promise((resolve) => server.close(resolve)), reconciler.stop(), election.stop()]);
  clearTimeout(timer);
  clearInterval(sweep);
  await Promise.all([context.database.$disconnect(), context.health.$disconnect()]);
  process.exit(0);
}

process.on("SIGTERM", (signal) => void stop(signal));
process.on("SIGINT", (signal) => void stop(signal));
server.on("error", (error) => {
  log.fatal({ event: "listen.failed", reason: error.message }, "cannot listen");
  process.exit(1);
});
server.listen(config.port, config.host, () => log.info({ event: "listening", url: urlOf(server) }, "listening"));
