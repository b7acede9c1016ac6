import { setTimeout as sleep } from "node:timers/promises";
import { Queue, Worker } from "bullmq";
import type { Redis } from "ioredis";

/** A queue that did not deliver its own job within this time cannot be relied on. */
const probeWithinMs = 4_000;
/** How long to wait for a connection that is being opened. */
const connectMs = 1_500;
/** Once nobody probes any more, what a probe left in Redis expires after this many seconds. */
const keptSeconds = 600;
const probeKeys = ["id", "meta", "events", "marker", "wait", "active", "completed", "stalled-check", "pc"];

/** Only a Cluster says so; nothing else reveals it before a script uses keys of two slots. */
const clusterReason =
  "This Redis is a Cluster, which the queue cannot use: it needs one server, or Sentinels before it (redis+sentinel://)";

/** A separate queue, in which a test job makes the full round trip. */
interface ProbeQueue {
  queue: Queue;
  worker: Worker;
}

export interface QueueProbe {
  /** @returns why the queue cannot be used, in the server's own words; null when it can */
  ask(): Promise<string | null>;
  close(): Promise<void>;
}

/** Something that a person can act on: the message of an error, or its code where there is none. */
export const wordsOf = (error: Error): string => error.message || (error as { code?: string }).code || error.name;

/**
 * Tests what the queue needs from Redis: the actual scripts and commands, on the connections that the worker uses. A Redis that responds
 * but refuses looks healthy in any other way. `complaint`: the last error of a connection, for errors that only say that there is none.
 */
export function openQueueProbe(options: {
  name: string;
  producer: Redis;
  consumer: Redis;
  complaint: () => string | null;
}): QueueProbe {
  const { name, producer, consumer, complaint } = options;
  let current: ProbeQueue | null = null;
  let asking: Promise<string | null> | null = null;

  const open = (): ProbeQueue => {
    const queue = new Queue(name, {
      connection: producer,
      skipVersionCheck: true,
      skipWaitingForReady: true,
      streams: { events: { maxLen: 10 } },
      defaultJobOptions: { removeOnComplete: true, removeOnFail: true },
    });
    const worker = new Worker(name, null, { connection: consumer, autorun: false, drainDelay: 1 });
    queue.on("error", () => {});
    worker.on("error", () => {});
    return { queue, worker };
  };
  const drop = async (): Promise<void> => {
    const opened = current;
    current = null;
    await Promise.allSettled([opened?.worker.close(true), opened?.queue.close()]);
  };
  const next = async (worker: Worker, block: boolean): Promise<void> => {
    const job = await worker.getNextJob("probe", { block });
    await job?.moveToCompleted("", "probe", false);
  };
  const connected = async (): Promise<void> => {
    const end = performance.now() + connectMs;
    while (producer.status !== "ready" && performance.now() < end) await sleep(25);
  };
  const round = async ({ queue, worker }: ProbeQueue): Promise<void> => {
    const cluster = await producer.info("cluster").catch((error: Error) => {
      if (!error.message.startsWith("NOPERM")) throw error;
      return "";
    });
    if (cluster.includes("cluster_enabled:1")) throw new Error(clusterReason);
    await next(worker, false);
    const waiting = next(worker, true);
    waiting.catch(() => {});
    await queue.add("probe", {});
    await waiting;
    await Promise.all(probeKeys.map((key) => producer.expire(queue.toKey(key), keptSeconds)));
  };
  const attempt = async (): Promise<string | null> => {
    try {
      await connected();
      current ??= open();
      await round(current);
      return null;
    } catch (error) {
      // What was opened on a connection that was refused stays refused.
      await drop();
      const words = wordsOf(error as Error);
      return /isn't writeable|Connection is closed|max retries|Command timed out/i.test(words)
        ? (complaint() ?? words)
        : words;
    }
  };
  return {
    async ask() {
      asking ??= attempt().finally(() => {
        asking = null;
      });
      const late = sleep(probeWithinMs, "late" as const, { ref: false });
      const answer = await Promise.race([asking, late]);
      return answer === "late" ? (complaint() ?? `Redis did not carry a job within ${probeWithinMs} ms`) : answer;
    },
    async close() {
      await drop();
    },
  };
}
