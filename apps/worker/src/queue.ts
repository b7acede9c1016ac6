import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "@tephra/control";
import { redisConnection, redisOptions } from "@tephra/control/process";
import { type Dispatched, type Enqueue, laneQueues, lanes } from "@tephra/control/work";
import { Queue, type Telemetry, Worker } from "bullmq";
import { Redis } from "ioredis";
import { openQueueProbe, wordsOf } from "./queue-probe.ts";

/** A job carries a task's id and nothing else: everything about it is in Postgres. */
interface TaskJob {
  taskId: string;
}

const jobName = "task";

/** Finished jobs are kept for the dashboard only. */
const keepCompleted = { age: 3600, count: 1000 };
const keepFailed = { age: 7 * 86_400, count: 5000 };

/** How long a start waits for Redis before going on without it. */
const connectMs = 1000;

/** As bullmq-otel reads it. */
const traceMetadata = (traceparent: string): string => JSON.stringify({ traceparent });

export interface JobQueues {
  enqueue: Enqueue;
  /**
   * Serves the queue of that name with `slots` concurrent jobs in each lane, also after a pause; stops serving the previous one. Settles when jobs can
   * arrive, or after a second without Redis, whose jobs arrive when it does.
   */
  serve(name: string): Promise<void>;
  /** Tests what the queue needs from Redis. Null: it works; otherwise the reason, in the server's own words. */
  refusal(): Promise<string | null>;
  /** Changes the number of concurrent jobs in each lane. */
  resize(slots: number): void;
  /** Takes no new jobs. Running ones go on. */
  pause(): Promise<void>;
  close(): Promise<void>;
}

/** The connections of one worker process to Redis, and its consumer. Losing Redis only means that no new jobs arrive. */
export function openJobQueues(options: {
  url: string;
  /** Name of the queue with which Redis is tested: this worker's alone. */
  probeName: string;
  slots: number;
  log: Logger;
  run: (taskId: string) => Promise<void>;
  /** Null: nothing is traced. */
  telemetry: Telemetry | null;
}): JobQueues {
  const { log } = options;
  let { slots } = options;
  const telemetry = options.telemetry === null ? {} : { telemetry: options.telemetry };
  const address = redisConnection(options.url);
  const producer = new Redis({
    ...redisOptions,
    ...address,
    enableOfflineQueue: false,
    commandTimeout: 4_000,
    socketTimeout: 5_000, // It never waits for a job.
    maxRetriesPerRequest: 1,
  });
  const consumer = new Redis({ ...redisOptions, ...address, maxRetriesPerRequest: null });
  let complaint: string | null = null;
  for (const connection of [producer, consumer]) {
    connection.on("error", (error: Error) => {
      complaint = wordsOf(error);
      log.debug({ err: error }, "redis connection");
    });
  }
  producer.on("ready", () => {
    complaint = null;
  });
  const probe = openQueueProbe({ name: options.probeName, producer, consumer, complaint: () => complaint });
  let refused: string | null = null;
  const queues = new Map<string, Queue<TaskJob>>();
  let served: string | null = null;
  let workers: Worker<TaskJob>[] = [];
  const letGo: Promise<void>[] = [];

  const queueNamed = (name: string): Queue<TaskJob> => {
    const known = queues.get(name);
    if (known) return known;
    const queue = new Queue<TaskJob>(name, {
      connection: producer,
      ...telemetry,
      skipVersionCheck: true,
      skipWaitingForReady: true,
      streams: { events: { maxLen: 2000 } },
      defaultJobOptions: { attempts: 1, removeOnComplete: keepCompleted, removeOnFail: keepFailed },
    });
    queue.on("error", (error) => log.debug({ err: error }, "queue"));
    queues.set(name, queue);
    return queue;
  };

  const jobOf = ({ taskId, jobId, traceParent }: Dispatched) => {
    const traced = traceParent === null ? {} : { telemetry: { metadata: traceMetadata(traceParent) } };
    return { name: jobName, data: { taskId }, opts: { jobId, ...traced } };
  };
  const leaveAll = (): void => {
    for (const worker of workers) letGo.push(worker.close());
    workers = [];
  };
  const consume = (queue: string): Worker<TaskJob> => {
    // Three named parameters: BullMQ passes its signal only to a processor that declares it. Ours come from the lease.
    const worker = new Worker<TaskJob>(queue, async (job, _token, _signal) => options.run(job.data.taskId), {
      connection: consumer,
      ...telemetry,
      concurrency: slots,
      lockDuration: 30_000,
      stalledInterval: 5_000,
      maxStalledCount: 1000,
      drainDelay: 5,
      removeOnComplete: keepCompleted,
      removeOnFail: keepFailed,
    });
    // Kept visible for a while, on the dashboard and in Redis.
    worker.on("failed", (job, error) =>
      log.warn({ event: "job.failed", job: job?.id, reason: error.message }, "a job was left"),
    );
    worker.on("error", (error) => log.debug({ err: error }, "consumer"));
    return worker;
  };

  return {
    async enqueue(name: string, jobs: readonly Dispatched[]) {
      const high = laneQueues(name).high;
      for (const [queue, of] of [
        [high, jobs.filter((job) => job.high)],
        [name, jobs.filter((job) => !job.high)],
      ] as const) {
        if (of.length > 0) await queueNamed(queue).addBulk(of.map(jobOf));
      }
    },
    async serve(name) {
      if (served === name && workers.length > 0) {
        // There may have been a pause in between: a paused worker resumes.
        for (const worker of workers) void worker.resume();
        return;
      }
      leaveAll();
      served = name;
      const queued = laneQueues(name);
      workers = lanes.map((lane) => consume(queued[lane]));
      // Errors on the way are handled by its listener.
      const ready = Promise.all(workers.map((worker) => worker.waitUntilReady().catch(() => {})));
      await Promise.race([ready, sleep(connectMs)]);
    },
    async refusal() {
      const before = refused;
      refused = await probe.ask();
      if (refused !== before) {
        if (refused !== null)
          log.warn({ event: "redis.refused", reason: refused }, "Redis cannot be used: polling for tasks");
        else log.warn({ event: "redis.works" }, "Redis can be used again");
      }
      // A consumer that was refused once may have given up.
      if (refused === null && before !== null) leaveAll();
      return refused;
    },
    resize(count) {
      slots = Math.max(1, count);
      for (const worker of workers) worker.concurrency = slots;
    },
    async pause() {
      await Promise.all(workers.map((worker) => worker.pause(true)));
    },
    async close() {
      await Promise.allSettled([...letGo, ...workers.map((worker) => worker.close(true)), probe.close()]);
      await Promise.allSettled([...queues.values()].map((q) => q.close()));
      producer.disconnect();
      consumer.disconnect();
    },
  };
}
