import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import { createServer as createTlsServer, Server as TlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { type Config, ConfigError, type Database, type Logger } from "@tephra/control";
import {
  actAs,
  allowFileThreads,
  type Certificates,
  type ImageTransfersConfig,
  loadConfig,
  logCrash,
  logVitals,
  openCertificates,
  openDatabase,
  openLog,
  tellTrouble,
} from "@tephra/control/process";
import { type ImageServerCard, publishImageServer, succeedImageServers, ticketKey } from "@tephra/control/work";
import { FileReaders, openEngine } from "@tephra/engine";
import { dataPlane } from "./data-plane.ts";
import { Keeper } from "./keeper.ts";
import { openPlaces } from "./places.ts";
import type { Session } from "./session.ts";

/** How often it looks for what has changed. */
const passMs = 250;
/** A connection on which nothing moves for this long is closed. */
const idleMs = 120_000;
const connectionsMax = 1_024;
/** For file calls: requests that read and write, and some that hang. */
const fileThreads = 32;
/** A process that has not renewed its registration for this share of the time after which it counts as gone writes nothing more. */
const fenceShare = 0.6;
/** How long a stopping process waits for what is under way. */
const stopMs = 10_000;

interface Settings {
  config: Config;
  images: ImageTransfersConfig;
}

function settingsOrExit(): Settings {
  try {
    const config = loadConfig();
    if (config.image_transfers !== null) return { config, images: config.image_transfers };
    process.stderr.write("image_transfers: is not configured, so there is nothing to serve\n");
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${error.message}\n`);
  }
  process.exit(2);
}

/** The server's own certificate; else, where the API answers over HTTPS, one as the API's; else none. */
async function certificatesFor({ config, images }: Settings, log: Logger): Promise<Certificates | null> {
  if (images.certificate_file !== null || config.tls.port === null) return null;
  const named = images.public_url === null ? [] : [new URL(images.public_url).hostname.replace(/^\[|\]$/g, "")];
  return openCertificates(config, log, [...named, images.host]);
}

function openServer(
  images: ImageTransfersConfig,
  certificates: Certificates | null,
  listener: RequestListener,
): Server {
  const limits = { requestTimeout: 0, headersTimeout: 15_000, keepAliveTimeout: idleMs };
  const { certificate_file: cert, private_key_file: key } = images;
  const given = cert === null || key === null ? null : { cert: readFileSync(cert), key: readFileSync(key) };
  const certificate = given ?? certificates?.current;
  const tls = certificate && createTlsServer({ ...limits, ...certificate }, listener);
  if (tls) certificates?.onChange((changed) => tls.setSecureContext(changed));
  const server: Server = tls ?? createServer(limits, listener);
  server.timeout = idleMs;
  server.maxConnections = connectionsMax;
  return server;
}

function urlOf(server: Server, { public_url: given }: ImageTransfersConfig): string {
  const { address, family, port } = server.address() as AddressInfo;
  const host = family === "IPv6" ? `[${address}]` : address;
  return given ?? `${server instanceof TlsServer ? "https" : "http"}://${host}:${port}`;
}

/** One process that serves image transfers: what its rows say is begun and ended, and clients read and write. */
async function main(): Promise<void> {
  const { config, images } = settingsOrExit();
  allowFileThreads(fileThreads);
  const log = openLog(config, "transfer");
  logCrash(log);
  logVitals(log, config.vitals_ms);
  const onTrouble = tellTrouble(log);
  const database = openDatabase(config.database_url, { connectionsMax: 10, onTrouble });
  // No request takes the connection of the heartbeats.
  const beats = openDatabase(config.database_url, { work: "beat", connectionsMax: 1, connectionsMin: 1, onTrouble });
  const places = openPlaces(config, log);
  const engine = openEngine();
  const id = randomUUID();
  let renewedAt = Number.NEGATIVE_INFINITY;
  const fence = (): void => {
    if (performance.now() - renewedAt < fenceShare * config.worker.down_ms) return;
    throw new Error("This process could not renew its registration: others may have taken over what it serves");
  };
  const requestsMax = images.connections_max;
  const keeper = new Keeper({
    database,
    log,
    serverId: id,
    places,
    engine,
    ticketKey: ticketKey(config),
    requestsMax,
    fence,
  });
  // Clients of the process before come as soon as this one listens: they wait until it has what that one served.
  const succeeded = Promise.withResolvers<void>();
  const sessionFor = async (ticket: string): Promise<Session | null> => {
    await succeeded.promise;
    return keeper.sessionFor(ticket);
  };
  const server = openServer(
    images,
    await certificatesFor({ config, images }, log),
    dataPlane({ sessionFor, connectionsMax: requestsMax, readers: new FileReaders(), log }),
  );
  await new Promise<void>((listening, refused) => {
    server.once("error", refused).listen(images.port, images.host, listening);
  });
  const card = async (): Promise<ImageServerCard> => {
    const place = { id, host: config.hostName, pid: process.pid, url: urlOf(server, images) };
    return { ...place, ...(await places.probe()) };
  };
  const register = async (
    publish: (database: Database, mine: ImageServerCard) => Promise<void> = publishImageServer,
  ): Promise<void> => {
    const mine = await card();
    const askedAt = performance.now();
    await publish(beats, mine);
    renewedAt = askedAt;
  };
  await register(succeedImageServers);
  succeeded.resolve();
  const stopping = new AbortController();
  const every = async (ms: number, what: string, work: () => Promise<unknown>): Promise<void> => {
    while (!stopping.signal.aborted) {
      await work().catch((error: unknown) => log.warn({ err: error }, `${what} failed`));
      await new Promise<void>((next) => setTimeout(next, ms));
    }
  };
  const actor = { kind: "worker" as const, worker: id };
  const loops = [
    every(config.worker.heartbeat_ms, "the heartbeat", () => register()),
    every(passMs, "a pass over the transfers", () => actAs(actor, () => keeper.pass())),
  ];
  const stop = async (signal: string): Promise<void> => {
    if (stopping.signal.aborted) process.exit(1);
    stopping.abort();
    log.info({ event: "stopping", signal }, "stopping");
    setTimeout(() => process.exit(1), stopMs);
    await keeper.stop();
    server.closeAllConnections();
    await Promise.allSettled([...loops, new Promise((closed) => server.close(closed))]);
    await Promise.allSettled([database.$disconnect(), beats.$disconnect()]);
    process.exit(0);
  };
  process.on("SIGTERM", (signal) => void stop(signal));
  process.on("SIGINT", (signal) => void stop(signal));
  process.on("unhandledRejection", (error) => log.error({ err: error }, "unhandled rejection"));
  log.info({ event: "listening", url: urlOf(server, images), server: id }, "listening");
}

await main();
