import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "@tephra/control";
import { redisConnection, redisOptions } from "@tephra/control/process";
import type { Dispatched, Enqueue } from "@tephra/control/work";
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";
import { openQueueProbe, wordsOf } from "./queue-probe.ts";

/** A job carries a task's id and nothing else: whatever it means is in Postgres. */
interface TaskJob {
  taskId: string;
}

const jobName = "task";

/** Finished jobs are kept for the dashboard only. */
const keepCompleted = { age: 3600, count: 1000 };
const keepFailed = { age: 7 * 86_400, count: 5000 };

/** How long a start waits for Redis before it goes on without. */
const connectMs = 1000;

export interface JobQueues {
  enqueue: Enqueue;
  /**
   * Serves the queue of that name with `slots` jobs at once, also after a pause; the one served before is let go. Settles when jobs can
   * come, or after a second without Redis, whose jobs come when it does.
   */
  serve(name: string): Promise<void>;
  /** Tries what the queue needs of Redis. Null: it works; else why not, in the server's own words. */
  refusal(): Promise<string | null>;
  /** Takes so many jobs at once from now on. */
  resize(slots: number): void;
  /** Takes nothing new. What runs goes on. */
  pause(): Promise<void>;
  close(): Promise<void>;
}

/** The connections of one worker process to Redis, and its consumer. Losing Redis only means that nothing new comes. */
export function openJobQueues(options: {
  url: string;
  /** Of the queue in which it is tried whether Redis does what is needed: this worker's alone. */
  probeName: string;
  slots: number;
  log: Logger;
  run: (taskId: string) => Promise<void>;
}): JobQueues {
  const { log } = options;
  let { slots } = options;
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
  let worker: Worker<TaskJob> | null = null;
  const letGo: Promise<void>[] = [];

  const queueNamed = (name: string): Queue<TaskJob> => {
    const known = queues.get(name);
    if (known) return known;
    const queue = new Queue<TaskJob>(name, {
      connection: producer,
      skipVersionCheck: true,
      skipWaitingForReady: true,
      streams: { events: { maxLen: 2000 } },
      defaultJobOptions: { attempts: 1, removeOnComplete: keepCompleted, removeOnFail: keepFailed },
    });
    queue.on("error", (error) => log.debug({ err: error }, "queue"));
    queues.set(name, queue);
    return queue;
  };

  return {
    async enqueue(name: string, jobs: readonly Dispatched[]) {
      await queueNamed(name).addBulk(
        jobs.map((j) => ({ name: jobName, data: { taskId: j.taskId }, opts: { jobId: j.jobId } })),
      );
    },
    async serve(name) {
      if (worker?.name === name) {
        // A pause may have stood between: a paused worker goes on.
        void worker.resume();
        return;
      }
      if (worker) letGo.push(worker.close());
      // Three named parameters: BullMQ hands the signal only to a processor that declares it. Ours come from the lease.
      worker = new Worker<TaskJob>(name, async (job, _token, _signal) => options.run(job.data.taskId), {
        connection: consumer,
        concurrency: slots,
        lockDuration: 30_000,
        stalledInterval: 5_000,
        maxStalledCount: 1000,
        drainDelay: 5,
        removeOnComplete: keepCompleted,
        removeOnFail: keepFailed,
      });
      // Left where it can be seen, on the board and in Redis, for a while.
      worker.on("failed", (job, error) =>
        log.warn({ event: "job.failed", job: job?.id, reason: error.message }, "a job was left"),
      );
      worker.on("error", (error) => log.debug({ err: error }, "consumer"));
      // What it says on the way, its listener hears.
      await Promise.race([worker.waitUntilReady().catch(() => {}), sleep(connectMs)]);
    },
    async refusal() {
      const before = refused;
      refused = await probe.ask();
      if (refused !== before) {
        if (refused !== null)
          log.warn({ event: "redis.refused", reason: refused }, "Redis cannot be used: tasks are found by looking");
        else log.warn({ event: "redis.works" }, "Redis can be used again");
      }
      if (refused === null && before !== null && worker) {
        // A consumer that was refused once may have given up.
        letGo.push(worker.close());
        worker = null;
      }
      return refused;
    },
    resize(count) {
      slots = Math.max(1, count);
      if (worker) worker.concurrency = slots;
    },
    async pause() {
      await worker?.pause(true);
    },
    async close() {
      await Promise.allSettled([...letGo, worker?.close(true), probe.close()]);
      await Promise.allSettled([...queues.values()].map((q) => q.close()));
      producer.disconnect();
      consumer.disconnect();
    },
  };
}
