import { availableParallelism } from "node:os";
import { LRUCache } from "lru-cache";
import type { Encoding } from "../codec/compression.ts";
import { chooseHashing, type HashingOption } from "../hashing/choose-hashing.ts";
import { MemoryBudget } from "../run/memory-budget.ts";
import { CpuPool } from "./cpu-pool.ts";
import type { ZeroFormResult } from "./cpu-tasks.ts";

/** State shared by all calls on one engine. */
export interface EngineContext {
  pool: CpuPool;
  memory: MemoryBudget;
  /** Per encoding and length: the stored form of an object of zeros. Bounded; a volume has two window lengths. */
  zeroForms: LRUCache<string, Promise<ZeroFormResult>>;
  /** Stored objects, by SHA-256 and length, known to decode to zeros. Bounded. */
  knownZeros: LRUCache<string, { md5: string }>;
  /** Digests of listings of complete backups, by place. Bounded; a worker sees the same few chains repeatedly. */
  wholeListings: LRUCache<string, string>;
}

/** Memory for windows and objects of all concurrent calls together. */
const memoryBytesDefault = 160 * 1024 * 1024;
const rememberedMax = 32;
const listingsMax = 10_000;

export interface EngineOptions {
  /** Threads that hash and compress; default: one per core. */
  threads?: number;
  /** Bounds the memory that windows and objects of all calls take together; default 160 MiB. */
  memoryBytes?: number;
  /** Default: the faster one by a short measurement. */
  hashing?: HashingOption;
  /** Starts the first thread at once, for a process that is there for one piece of work. Default: with that piece of work. */
  startNow?: boolean;
}

export function createEngineContext(options: EngineOptions): EngineContext {
  const threads = Math.max(1, options.threads ?? availableParallelism());
  const pool = new CpuPool(threads, () => chooseHashing(options.hashing));
  if (options.startNow === true) pool.startAhead(1);
  return {
    pool,
    memory: new MemoryBudget(options.memoryBytes ?? memoryBytesDefault),
    zeroForms: new LRUCache({ max: rememberedMax }),
    knownZeros: new LRUCache({ max: rememberedMax }),
    wholeListings: new LRUCache({ max: listingsMax }),
  };
}

/** The stored form of an object of `length` zeros in an encoding; computed once. Its bytes are shared: never transfer them. */
export function zeroForm(engine: EngineContext, form: Encoding & { length: number }): Promise<ZeroFormResult> {
  const key = `${form.compression}:${form.zlibEncoder}:${form.level}:${form.length}`;
  const known = engine.zeroForms.get(key);
  if (known !== undefined) return known;
  const signal = new AbortController().signal;
  const result = engine.pool.run({ kind: "zeroForm", ...form }, [], signal);
  result.catch(() => engine.zeroForms.delete(key));
  engine.zeroForms.set(key, result);
  return result;
}
