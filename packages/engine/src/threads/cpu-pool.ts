import { Worker } from "node:worker_threads";
import { ThreadFailedError } from "../errors.ts";
import type { HashingChoice } from "../hashing/hashing.ts";
import type { CpuRequest, CpuResult } from "./cpu-tasks.ts";
import type { CpuAnswer, CpuMessage, CpuThreadData } from "./cpu-thread.ts";

interface Job {
  message: CpuMessage;
  transfer: ArrayBuffer[];
  resolve: (answer: CpuAnswer) => void;
  reject: (error: Error) => void;
  /** The last observed count of its file calls, and since when it has been unchanged. */
  fileCall: { count: number; since: number };
}

/** Threads for hashing and compression, started on first use. Requests are served in order. Idle threads do not keep the process alive. */
export class CpuPool implements AsyncDisposable {
  readonly #threadsMax: number;
  readonly #chooseHashing: () => HashingChoice;
  #hashing: HashingChoice | null = null;
  readonly #threads = new Set<Worker>();
  readonly #idle: Worker[] = [];
  readonly #queue: Job[] = [];
  readonly #running = new Map<Worker, Job>();
  /** Threads to be started ahead, one at a time. */
  #wanted = 0;
  #isStarting = false;
  #closed = false;

  /** `chooseHashing` is called once, when the first thread is needed: measuring takes a few milliseconds. */
  constructor(threadsMax: number, chooseHashing: () => HashingChoice) {
    this.#threadsMax = threadsMax;
    this.#chooseHashing = chooseHashing;
  }

  /** How the threads hash. */
  get hashing(): HashingChoice {
    this.#hashing ??= this.#chooseHashing();
    return this.#hashing;
  }

  get threads(): number {
    return this.#threadsMax;
  }

  /**
   * Sees to it that there are `count` threads, if so many are allowed, before they are needed: each takes about 50 ms to start, in which the
   * caller can do something else. One after another, so that they do not take the processor from it.
   */
  startAhead(count: number): void {
    this.#wanted = Math.max(this.#wanted, Math.min(count, this.#threadsMax));
    if (this.#closed || this.#isStarting || this.#threads.size >= this.#wanted) return;
    this.#isStarting = true;
    const thread = this.#start();
    thread.unref();
    thread.once("online", () => {
      this.#isStarting = false;
      this.startAhead(0);
    });
    this.#idle.push(thread);
  }

  /**
   * Runs one request. The buffers in `transfer` move to the thread and are detached here. On abort the thread is told to stop, and the
   * signal's reason is thrown once it has.
   */
  async run<Request extends CpuRequest>(
    request: Request,
    transfer: ArrayBuffer[],
    signal: AbortSignal,
  ): Promise<CpuResult<Request>> {
    signal.throwIfAborted();
    const cancel = new Int32Array(new SharedArrayBuffer(4));
    const fileCalls = new Int32Array(new SharedArrayBuffer(4));
    const onAbort = (): void => void Atomics.store(cancel, 0, 1);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      const answer = await new Promise<CpuAnswer>((resolve, reject) => {
        const fileCall = { count: 0, since: 0 };
        this.#queue.push({ message: { request, cancel, fileCalls }, transfer, resolve, reject, fileCall });
        this.#next();
      });
      signal.throwIfAborted();
      if (answer.outcome === "failed") throw new ThreadFailedError(answer.message);
      return answer.result as CpuResult<Request>;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** How long a thread has been inside one file call, in ms, as far as polling can tell; 0 when none is. */
  fileCallMs(): number {
    const now = performance.now();
    let longest = 0;
    for (const { message, fileCall } of this.#running.values()) {
      const count = Atomics.load(message.fileCalls, 0);
      if (count !== fileCall.count) Object.assign(fileCall, { count, since: now });
      if (count % 2 === 1) longest = Math.max(longest, now - fileCall.since);
    }
    return longest;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const job of this.#queue.splice(0)) job.reject(new ThreadFailedError("The engine was closed."));
    await Promise.all([...this.#threads].map((thread) => thread.terminate()));
  }

  #next(): void {
    if (this.#closed) {
      for (const job of this.#queue.splice(0)) job.reject(new ThreadFailedError("The engine was closed."));
      return;
    }
    while (this.#queue.length > 0) {
      const thread = this.#idle.pop() ?? (this.#threads.size < this.#threadsMax ? this.#start() : undefined);
      if (thread === undefined) return;
      const job = this.#queue.shift() as Job;
      this.#running.set(thread, job);
      thread.ref();
      thread.postMessage(job.message, job.transfer);
    }
  }

  #start(): Worker {
    const entry = new URL(import.meta.url.endsWith(".ts") ? "./cpu-thread.ts" : "./cpu-thread.js", import.meta.url);
    const workerData: CpuThreadData = { hashing: this.hashing };
    const thread = new Worker(entry, { workerData });
    this.#threads.add(thread);
    thread.on("message", (answer: CpuAnswer) => {
      const job = this.#running.get(thread);
      this.#running.delete(thread);
      this.#idle.push(thread);
      thread.unref();
      job?.resolve(answer);
      this.#next();
    });
    thread.on("error", (error) => this.#bury(thread, error));
    thread.on("exit", () => this.#bury(thread, new Error("The thread has ended.")));
    return thread;
  }

  #bury(thread: Worker, cause: Error): void {
    if (!this.#threads.delete(thread)) return;
    this.#isStarting = false;
    const at = this.#idle.indexOf(thread);
    if (at >= 0) this.#idle.splice(at, 1);
    const job = this.#running.get(thread);
    this.#running.delete(thread);
    job?.reject(new ThreadFailedError(`A thread for hashing and compression died: ${cause.message}`, { cause }));
    this.#next();
  }
}
