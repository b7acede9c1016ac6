import { randomInt } from "node:crypto";
import { z } from "zod";
import { HypervisorRefusedError, HypervisorUnavailableError } from "../../errors.ts";
import { type JsonSocket, openJsonSocket } from "./json-socket.ts";
import { parseJson, within } from "./qmp-client.ts";

/** No answer within this time means that no agent runs in the guest: its socket exists either way. */
const syncMs = 5_000;
const replyMs = 5_000;
/** After it is sent this byte, the agent prefixes its next line with it: earlier input belongs to a previous client. */
const delimiter = 0xff;

const Refusal = z.object({ error: z.object({ class: z.string(), desc: z.string() }) });

/**
 * A client of QEMU's guest agent. The agent runs in the guest, so its answers are untrusted: they determine only which consistency a
 * snapshot is labelled with. One command at a time.
 */
export class GuestAgent implements Disposable {
  #socket: JsonSocket | null = null;
  #ended: HypervisorUnavailableError | null = null;
  /** Receives the next relevant line. */
  #waiting: {
    accepts: (line: Buffer) => boolean;
    resolve: (line: Buffer) => void;
    reject: (error: Error) => void;
  } | null = null;

  private constructor() {}

  /** Connects and synchronizes; null when no agent answers. See openJsonSocket. */
  static async connect(path: string, roots: readonly string[]): Promise<GuestAgent | null> {
    const agent = new GuestAgent();
    agent.#socket = await openJsonSocket(path, roots, {
      onLine: (line) => agent.#receive(line),
      onEnd: (error) => {
        agent.#ended ??= error;
        agent.#waiting?.reject(error);
      },
    });
    if (agent.#socket === null) return null;
    try {
      await agent.sync();
      return agent;
    } catch (error) {
      agent[Symbol.dispose]();
      if (error instanceof HypervisorUnavailableError) return null;
      throw error;
    }
  }

  /** Afterwards the next reply belongs to the next command, whatever was sent or truncated before. */
  async sync(): Promise<void> {
    const id = randomInt(1, 2 ** 47);
    const expected = JSON.stringify({ return: id });
    const ours = (line: Buffer): boolean => {
      const from = line.lastIndexOf(delimiter) + 1;
      return from > 0 && JSON.stringify(parseJson(line.subarray(from))) === expected;
    };
    const text = JSON.stringify({ execute: "guest-sync-delimited", arguments: { id } });
    await this.#ask(Buffer.concat([Buffer.of(delimiter), Buffer.from(`${text}\n`)]), ours, syncMs);
  }

  async isFrozen(): Promise<boolean> {
    return (await this.#execute("guest-fsfreeze-status", z.enum(["thawed", "frozen"]))) === "frozen";
  }

  /** Freezes the file systems at these mount points, or all of them. @returns how many */
  async freeze(mountpoints: readonly string[] | null, limitMs: number): Promise<number> {
    return mountpoints === null
      ? await this.#execute("guest-fsfreeze-freeze", z.number(), {}, limitMs)
      : await this.#execute("guest-fsfreeze-freeze-list", z.number(), { mountpoints }, limitMs);
  }

  /** Thaws everything; does nothing when the guest is not frozen. */
  async thaw(): Promise<void> {
    await this.#execute("guest-fsfreeze-thaw", z.number());
  }

  [Symbol.dispose](): void {
    this.#socket?.close();
  }

  async #execute<T>(command: string, returns: z.ZodType<T>, args: object = {}, limitMs = replyMs): Promise<T> {
    const line = await this.#ask(`${JSON.stringify({ execute: command, arguments: args })}\n`, () => true, limitMs);
    const reply = z.union([z.object({ return: returns }), Refusal]).safeParse(parseJson(line));
    if (!reply.success)
      throw new HypervisorUnavailableError(`The guest agent's answer to ${command} is not a reply to it.`);
    if ("error" in reply.data) {
      throw new HypervisorRefusedError(`The guest agent refuses ${command}: ${reply.data.error.desc}`);
    }
    return reply.data.return;
  }

  async #ask(data: string | Buffer, accepts: (line: Buffer) => boolean, limitMs: number): Promise<Buffer> {
    if (this.#ended !== null) throw this.#ended;
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    this.#waiting = { accepts, resolve, reject };
    this.#socket?.send(data);
    try {
      return await within(promise, limitMs, "The guest agent does not answer.");
    } finally {
      this.#waiting = null;
    }
  }

  #receive(line: Buffer): void {
    if (this.#waiting?.accepts(line)) this.#waiting.resolve(line);
  }
}
