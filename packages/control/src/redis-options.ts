/** How every connection to Redis behaves; each adds what it is used for. */
export const redisOptions = {
  /**
   * A server that leaves a command unanswered for so long is gone without a word: the connection is given up, and a new one made.
   * Longer than BullMQ lets a server wait for a job.
   */
  socketTimeout: 20_000,
  /** After a failover the old primary may live on as a replica, which only reads; the address leads to the new one by then. */
  reconnectOnError: (error: Error): boolean => error.message.includes("READONLY"),
} as const;
