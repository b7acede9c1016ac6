import { setTimeout as sleep } from "node:timers/promises";
import { type Dispatched, type Enqueue, type Logger, redisOptions } from "@tephra/control";
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

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
  /** Takes so many jobs at once from now on. */
  resize(slots: number): void;
  /** Takes nothing new. What runs goes on. */
  pause(): Promise<void>;
  close(): Promise<void>;
}

/** The connections of one worker process to Redis, and its consumer. Losing Redis only means that nothing new comes. */
export function openJobQueues(options: {
  url: string;
  slots: number;
  log: Logger;
  run: (taskId: string) => Promise<void>;
}): JobQueues {
  const { log } = options;
  let { slots } = options;
  const producer = new Redis(options.url, {
    ...redisOptions,
    enableOfflineQueue: false,
    commandTimeout: 4_000,
    socketTimeout: 5_000, // It never waits for a job.
    maxRetriesPerRequest: 1,
  });
  const consumer = new Redis(options.url, { ...redisOptions, maxRetriesPerRequest: null });
  for (const connection of [producer, consumer]) {
    connection.on("error", (error: Error) => log.debug({ err: error }, "redis connection"));
  }
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
      worker.on("error", (error) => log.debug({ err: error }, "consumer"));
      await Promise.race([worker.waitUntilReady(), sleep(connectMs)]);
    },
    resize(count) {
      slots = Math.max(1, count);
      if (worker) worker.concurrency = slots;
    },
    async pause() {
      await worker?.pause(true);
    },
    async close() {
      await Promise.allSettled([...letGo, worker?.close(true)]);
      await Promise.allSettled([...queues.values()].map((q) => q.close()));
      producer.disconnect();
      consumer.disconnect();
    },
  };
}
