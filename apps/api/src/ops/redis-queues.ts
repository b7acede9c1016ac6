import type { Config, Logger } from "@tephra/control";
import { redisConnection, redisOptions } from "@tephra/control/process";
import { Queue } from "bullmq";
import { Redis } from "ioredis";

/** How long a reader waits for an unresponsive Redis. */
const redisWithinMs = 2_000;

/** The queues in Redis, to be looked at. */
export interface RedisQueues {
  /** Resolves when Redis responds. @throws when it does not within two seconds */
  reach(): Promise<void>;
  /** Each is opened once and stays open. */
  queueOf(name: string): Queue;
}

/**
 * One connection, opened on its first use. Its failures are logged and have no other effect: nothing else in the API uses Redis, so that all
 * other routes keep working while it is down.
 */
export function openRedisQueues({ redis_url: url }: Pick<Config, "redis_url">, log: Logger): RedisQueues {
  const redis = new Redis({
    ...redisOptions,
    ...redisConnection(url),
    lazyConnect: true,
    maxRetriesPerRequest: 1,
    enableOfflineQueue: false,
    connectTimeout: redisWithinMs,
    commandTimeout: redisWithinMs,
    retryStrategy: (times) => Math.min(times * 500, 10_000),
  });
  redis.on("error", (error) =>
    log.warn({ event: "board.redis", reason: error.message }, "the queue board cannot reach Redis"),
  );
  const known = new Map<string, Queue>();
  return {
    async reach() {
      if (redis.status === "wait" || redis.status === "end") await redis.connect();
      await redis.ping();
    },
    queueOf(name) {
      const found = known.get(name);
      if (found) return found;
      const queue = new Queue(name, { connection: redis });
      queue.on("error", (error) =>
        log.warn({ event: "board.queue", queue: name, reason: error.message }, "queue board"),
      );
      known.set(name, queue);
      return queue;
    },
  };
}
