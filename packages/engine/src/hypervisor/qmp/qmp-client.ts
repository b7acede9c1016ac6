import { parseStrictJson } from "@tephra/format";
import { z } from "zod";
import { HypervisorRefusedError, HypervisorUnavailableError } from "../../errors.ts";
import { type JsonSocket, lineBytesMax, openJsonSocket } from "./json-socket.ts";

/** A monitor serves one client at a time; a second one can connect but gets no greeting until the first disconnects. */
const greetingMs = 10_000;
const replyMs = 30_000;

const Reply = z.union([
  z.object({ id: z.number(), return: z.unknown() }),
  z.object({ id: z.number().optional(), error: z.object({ class: z.string(), desc: z.string() }) }),
]);
const Message = z.union([z.object({ QMP: z.object({}) }), z.object({ event: z.string() }), Reply]);

/** The command does not exist in this program: a qemu-storage-daemon has no machine, an old QEMU lacks new commands. */
export class CommandMissingError extends HypervisorRefusedError {}

interface Call {
  command: string;
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/**
 * A client of QEMU's machine protocol (QMP): commands with ids, any number at once. Events are not stored; they only wake callers that
 * wait for a change and then query for it.
 */
export class QmpClient implements Disposable {
  readonly #calls = new Map<number, Call>();
  readonly #greeted = Promise.withResolvers<void>();
  #bell = Promise.withResolvers<void>();
  /** An event has come for which nobody has waited yet. */
  #hasRung = false;
  #socket: JsonSocket | null = null;
  #ended: HypervisorUnavailableError | null = null;
  #lastId = 0;

  private constructor() {
    this.#greeted.promise.catch(() => {}); // It may reject before anybody awaits it.
  }

  /** Connects and completes the negotiation; null when nobody is listening. See openJsonSocket. */
  static async connect(path: string, roots: readonly string[]): Promise<QmpClient | null> {
    const client = new QmpClient();
    client.#socket = await openJsonSocket(path, roots, {
      onLine: (line) => client.#receive(line),
      onEnd: (error) => client.#end(error),
    });
    if (client.#socket === null) return null;
    try {
      await within(
        client.#greeted.promise,
        greetingMs,
        `The monitor ${path} gives no greeting: is another client on it?`,
      );
      await client.execute("qmp_capabilities");
      return client;
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Executes a command and returns its result. HypervisorRefusedError with QEMU's message; HypervisorUnavailableError when the connection
   * closes or no reply arrives in time: whether the command was executed is then unknown.
   */
  async execute(command: string, args: object = {}): Promise<unknown> {
    if (this.#ended !== null) throw this.#ended;
    const id = ++this.#lastId;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#calls.set(id, { command, resolve, reject });
    try {
      this.#socket?.send(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
      return await within(promise, replyMs, `The hypervisor does not answer ${command}.`);
    } finally {
      this.#calls.delete(id);
    }
  }

  /** Resolves when an event has come since the last call, at the next event, or after `ms`, which bounds the delay when one is missed. */
  async changed(ms: number): Promise<void> {
    if (this.#ended !== null) throw this.#ended;
    if (!this.#hasRung) {
      const timer = setTimeout(() => this.#ring(), ms);
      await this.#bell.promise.finally(() => clearTimeout(timer));
    }
    this.#hasRung = false;
  }

  [Symbol.dispose](): void {
    this.#socket?.close();
  }

  #receive(line: Buffer): void {
    const parsed = Message.safeParse(parseJson(line));
    // QEMU's replies are trusted to be JSON; a peer that sends anything else is not QEMU.
    if (!parsed.success) {
      this.#socket?.close();
      this.#end(new HypervisorUnavailableError("The socket is not a QEMU monitor's."));
    } else if ("QMP" in parsed.data) {
      this.#greeted.resolve();
    } else if ("event" in parsed.data) {
      this.#ring();
    } else {
      this.#settle(parsed.data);
    }
  }

  #settle(reply: z.infer<typeof Reply>): void {
    const call = this.#calls.get(reply.id ?? 0);
    if ("error" in reply) {
      const { class: kind, desc } = reply.error;
      const Refusal = kind === "CommandNotFound" ? CommandMissingError : HypervisorRefusedError;
      call?.reject(new Refusal(`The hypervisor refuses ${call.command}: ${desc}`));
    } else {
      call?.resolve(reply.return);
    }
  }

  #ring(): void {
    this.#hasRung = true;
    this.#bell.resolve();
    this.#bell = Promise.withResolvers();
  }

  #end(error: HypervisorUnavailableError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    this.#greeted.reject(error);
    for (const call of this.#calls.values()) call.reject(error);
    this.#ring();
  }
}

/** Undefined for invalid JSON. */
export function parseJson(text: Buffer | string): unknown {
  try {
    return parseStrictJson(text, lineBytesMax);
  } catch {
    return undefined;
  }
}

/** HypervisorUnavailableError with `message` when the promise has not settled in `ms`; the promise itself continues. */
export async function within<T>(promise: Promise<T>, ms: number, message: string): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new HypervisorUnavailableError(message)), ms);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
