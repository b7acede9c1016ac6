import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import { type Config, ConfigError } from "@tephra/control";
import {
  allowFileThreads,
  installationOf,
  joinElection,
  loadConfig,
  logCrash,
  logVitals,
  openDatabase,
  openLog,
  startReconciler,
  startTracing,
  tellTrouble,
} from "@tephra/control/process";
import {
  installationId,
  isHostDisabled,
  type Lane,
  lanes,
  type OwnWorker,
  type Published,
  publishWorker,
  queueFor,
  reserveBandwidth,
  startDispatcher,
  undispatchTask,
  withdrawWorker,
} from "@tephra/control/work";
import { openEngine } from "@tephra/engine";
import { Bandwidth } from "./bandwidth.ts";
import { runTask } from "./consumers.ts";
import type { WorkerContext } from "./context.ts";
import { GiveWay } from "./give-way.ts";
import { DrainedError, openLeases } from "./leases.ts";
import { BackupKeeper } from "./machine-backups/keeper.ts";
import { startNotifier } from "./notifier.ts";
import { openJobQueues } from "./queue.ts";
import { openSites } from "./sites.ts";
import { openUnclaimed } from "./unclaimed.ts";

const { version } = createRequire(import.meta.url)("../package.json") as { version: string };

/** Grace period for a drained task to notice; then the process exits anyway, and its leases expire. */
const abortGraceMs = 3_000;
/** Time for the other steps of stopping; servers that are silent are not waited for any longer. */
const farewellMs = 1_000;
/** Threads for file calls beyond one for each slot of each lane: for probes, and for calls that hang. */
const spareFileThreads = 16;
/** How long an abandoned task waits for others to learn of the place that hangs. */
const tellMs = 5_000;

function readConfig(): Config {
  try {
    return loadConfig();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(2);
  }
}

async function until(done: () => boolean, limitMs: number): Promise<void> {
  const end = performance.now() + limitMs;
  while (!done() && performance.now() < end) await new Promise((next) => setTimeout(next, 20));
}

/**
 * One worker process: joins the planes. Receives jobs, claims their tasks, calls the engine; stands for election as dispatcher, notifier and reconciler.
 */
async function main(): Promise<void> {
  const config = readConfig();
  allowFileThreads(lanes.length * config.worker.slots + spareFileThreads);
  const log = openLog(config, "worker");
  logCrash(log);
  logVitals(log, config.vitals_ms);
  const tracing = await startTracing(config, "worker");
  const telemetry = tracing === null ? null : new (await import("bullmq-otel")).BullMQOtel({ tracerName: "tephra" });
  const workerId = `${config.hostName}:${process.pid}:${randomUUID()}`;
  const { slots, threads, memory_bytes: memoryBytes, lease_ms: leaseMs, heartbeat_ms: heartbeatMs } = config.worker;
  const onTrouble = tellTrouble(log);
  const database = openDatabase(config.database_url, {
    connectionsMax: slots + 4,
    onTrouble,
  });
  // Leases and heartbeats have connections that no handler can take.
  const beats = openDatabase(config.database_url, { work: "beat", connectionsMax: 2, connectionsMin: 1, onTrouble });
  // One at a time chooses tasks, and plans how to once, not in every connection of the handlers.
  const choosing = openDatabase(config.database_url, { work: "dispatch", connectionsMax: 1, onTrouble });
  const engine = openEngine({ memoryBytes, ...(threads === null ? {} : { threads }) });
  const sites = openSites(config, log, () => installationId(database));
  /** Abandoned tasks whose handlers are still stuck, with whatever they hold. */
  const standing = new Set<Promise<unknown>>();
  const onHung: WorkerContext["onHung"] = async ({ places, message }, settled) => {
    const starved = places.length === 0 && standing.size > 0;
    log.warn({ event: "worker.hung", places, reason: message }, "a task that did not move was given up");
    standing.add(settled);
    queues.resize(slots - standing.size);
    const end = (): void => {
      standing.delete(settled);
      queues.resize(slots - standing.size);
    };
    settled.then(end, end);
    sites.hang(places, message, settled);
    await Promise.race([lookSafely(true), sleep(tellMs)]);
    // Hung calls hold threads and memory that cannot be freed: a new process has its own.
    if (starved || standing.size >= slots) void stop("too much hangs");
  };
  const bandwidth = new Bandwidth({
    host: config.hostName,
    reserve: (key, asked) => reserveBandwidth(database, key, asked),
  });
  const context: WorkerContext = {
    config,
    log,
    database,
    engine,
    sites,
    workerId,
    bandwidth,
    giveWay: new GiveWay(),
    onHung,
  };
  const { quiet_ms: quietMs } = config.tasks;
  const fileCallMs = (): number => engine.fileCallMs();
  const leases = openLeases({
    database: beats,
    log,
    workerId,
    leaseMs,
    heartbeatMs,
    quietMs,
    fileCallMs,
    answers: sites.answers,
    isRegistered: () => performance.now() - publishedAt < 1.5 * heartbeatMs,
  });
  const leaveTask = openUnclaimed(database, log);
  const run = async (taskId: string): Promise<void> => {
    if (stopping || disabled) return undispatchTask(database, taskId);
    if (await runTask(taskId, context, leases)) return dispatcher.freed();
    // Nothing was claimed: somebody else has it, or this host was disabled a moment ago.
    await obey(await isHostDisabled(database, config.hostName));
    if (disabled) await undispatchTask(database, taskId);
    else await leaveTask(taskId);
  };
  const probeName = `tephra-probe-${randomUUID()}`;
  const queues = openJobQueues({ url: config.redis_url, probeName, slots, log, run, telemetry });
  let served: string | null = null;
  let redisRefusal: string | null = null;
  /** Tasks taken without a job that are not claimed yet, or are running. */
  const taken: Record<Lane, Set<string>> = { high: new Set(), other: new Set() };
  const own: OwnWorker = {
    queue: () => (stopping || disabled ? null : served),
    redisWorks: () => redisRefusal === null,
    free: (lane) => slots - standing.size - Math.max(leases.count(lane), taken[lane].size),
    take: (taskId, lane) => {
      if (taken[lane].has(taskId)) return;
      taken[lane].add(taskId);
      run(taskId)
        .catch((error: unknown) => log.warn({ err: error, task: taskId }, "a task could not be taken"))
        .finally(() => taken[lane].delete(taskId));
    },
  };
  const election = joinElection({
    database: beats,
    log,
    id: workerId,
    roles: ["dispatcher", "notifier", "reconciler"],
  });
  const dispatcher = startDispatcher({
    database: choosing,
    config,
    log,
    enqueue: queues.enqueue,
    own,
    election,
  });
  const reconciler = startReconciler({ database, config, log, election });
  const backups = new BackupKeeper({ database, config, log, sites, workerId });
  const notifier = startNotifier({ database, config, log, election });
  let stopping = false;
  let disabled = false;

  /** A disabled host takes no new tasks; running ones go on. */
  const obey = async (isDisabled: boolean): Promise<void> => {
    const wasDisabled = disabled;
    disabled = isDisabled;
    if (disabled) await queues.pause();
    else if (wasDisabled && !stopping && served !== null) await queues.serve(served);
  };
  let installation: string | null = null;
  let publishing: Promise<Published> | null = null;
  let publishedAt = Number.NEGATIVE_INFINITY;
  const look = async (): Promise<void> => {
    const [{ reaches, unreachable, freeBytes, places }, refusal] = await Promise.all([sites.probe(), queues.refusal()]);
    redisRefusal = refusal;
    if (refusal !== null) unreachable["redis"] = refusal;
    installation ??= await installationOf(database);
    served = queueFor(reaches, installation);
    // Serve the queue first: from the worker's registration others conclude that it takes tasks.
    if (!stopping && !disabled) await queues.serve(served);
    if (stopping) return;
    const slotsLeft = Math.max(0, slots - standing.size);
    publishing = publishWorker(beats, {
      id: workerId,
      installation,
      host: config.hostName,
      pid: process.pid,
      slots: slotsLeft,
      reaches,
      unreachable,
      freeBytes,
      places,
      version,
      rssBytes: process.memoryUsage.rss(),
    });
    const published = await publishing;
    publishedAt = performance.now();
    bandwidth.update(published.limits, published.now);
    await obey(published.disabled);
    for (const [name, why] of Object.entries(unreachable))
      if (name !== "redis") log.warn({ name, why }, "not reached from here");
    if (!disabled) for (const { id, lane } of published.undelivered) if (own.free(lane) > 0) own.take(id, lane);
    dispatcher.wake();
    if (published.machineBackups) backups.look();
  };
  let looking: Promise<void> | null = null;
  /** One probe at a time. `anew`: one that begins after now. */
  const lookSafely = async (anew = false): Promise<void> => {
    if (anew) await looking;
    looking ??= look()
      .catch((error: unknown) => log.warn({ err: error }, "could not look around"))
      .finally(() => {
        looking = null;
      });
    await looking;
  };
  /** A regular exit waits for all threads, and for one that hangs it would wait forever. */
  const leave = (code: number): void => {
    log.flush();
    if (standing.size === 0 && leases.count() === 0 && !sites.isProbing()) process.exit(code);
    process.kill(process.pid, "SIGKILL");
  };
  /** After what is being written: a registration written later would look like a live worker. */
  const withdraw = async (): Promise<void> => {
    await publishing?.catch(() => {});
    await withdrawWorker(database, workerId);
  };
  let probing: NodeJS.Timeout | undefined;
  const stop = async (signal: string): Promise<void> => {
    if (stopping) return;
    stopping = true;
    log.info({ event: "worker.stopping", signal, tasks: leases.count() }, "worker stops");
    setTimeout(() => leave(1), config.worker.drain_ms + abortGraceMs + farewellMs);
    clearInterval(probing);
    await queues.pause().catch(() => {});
    await Promise.allSettled([
      election.stop(),
      dispatcher.stop(),
      reconciler.stop(),
      notifier.stop(),
      backups.stop(),
      withdraw(),
    ]);
    await until(() => leases.count() === 0, config.worker.drain_ms);
    leases.abortAll(new DrainedError());
    await until(() => leases.count() === 0, abortGraceMs);
    await leases.stop();
    await Promise.allSettled([
      queues.close(),
      engine[Symbol.asyncDispose](),
      sites[Symbol.asyncDispose](),
      database.$disconnect(),
      beats.$disconnect(),
      choosing.$disconnect(),
    ]);
    await tracing?.stop();
    log.info({ event: "worker.stopped" }, "worker stopped");
    leave(0);
  };
  // Before the worker is registered: whoever sees it may stop it, and its registration must go with it.
  process.on("SIGTERM", () => void stop("SIGTERM"));
  process.on("SIGINT", () => void stop("SIGINT"));
  process.on("unhandledRejection", (error) => log.error({ err: error }, "unhandled rejection"));

  await lookSafely();
  if (stopping) return;
  // A mount may come or go: the places are probed again with every heartbeat.
  probing = setInterval(() => void lookSafely(), heartbeatMs);
  backups.start();
  log.info({ event: "worker.started", worker: workerId, slots }, "worker started");
}

await main();
