import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { errnoOf, HypervisorUnavailableError, PathNotAllowedError } from "../../errors.ts";
import { O_PATH } from "../../folder.ts";
import { openUserPath } from "../../volume/file/user-path.ts";

/** A longer reply closes the connection. QEMU's longest is its schema, of 300 KB. */
export const lineBytesMax = 4 * 1024 * 1024;
const connectMs = 5_000;
const newline = 0x0a;

/** One JSON value per line over a unix socket, the protocol of QEMU's monitor and guest agent. */
export interface JsonSocket {
  /** Sends bytes unchanged: the agent protocol uses one byte that is not JSON. */
  send(data: string | Uint8Array): void;
  close(): void;
}

export interface JsonSocketEvents {
  /** One line without its terminator. Bytes, because the agent marks a line with a byte that is not text. */
  onLine: (line: Buffer) => void;
  /** Called once, however the connection ends. */
  onEnd: (error: HypervisorUnavailableError) => void;
}

/**
 * Connects to a socket beneath one of the roots.
 *
 * @returns null when nobody is listening: the file does not exist, or its program has exited
 * @throws PathNotAllowedError for anything but a socket, or outside the roots; HypervisorUnavailableError
 */
export async function openJsonSocket(
  path: string,
  roots: readonly string[],
  { onLine, onEnd }: JsonSocketEvents,
): Promise<JsonSocket | null> {
  await using named = await openUserPath(path, { roots });
  // Connects to the very file that was checked, whatever its name refers to by now.
  const found = await open(named.folder.at(named.name), O_PATH | constants.O_NOFOLLOW).catch((error: unknown) => {
    if (errnoOf(error) === "ENOENT") return null;
    throw new HypervisorUnavailableError(`The socket ${path} cannot be reached (${errnoOf(error)}).`, { cause: error });
  });
  if (found === null) return null;
  const socket = await connectTo(found, path).finally(() => found.close());
  if (socket === null) return null;
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  const end = (reason: string, cause?: unknown): void => {
    socket.destroy();
    onEnd(new HypervisorUnavailableError(`The connection to ${path} has ended: ${reason}.`, { cause }));
  };
  socket.on("error", (error) => end(errnoOf(error), error));
  socket.on("close", () => end("its other side has closed it"));
  socket.on("data", (chunk: Buffer) => {
    let start = 0;
    for (let at = chunk.indexOf(newline); at >= 0; at = chunk.indexOf(newline, start)) {
      onLine(Buffer.concat([...pending, chunk.subarray(start, at)]));
      pending = [];
      pendingBytes = 0;
      start = at + 1;
    }
    pending.push(chunk.subarray(start));
    pendingBytes += chunk.length - start;
    if (pendingBytes > lineBytesMax) end(`a line is longer than ${lineBytesMax} bytes`);
  });
  return {
    send: (data) => void socket.write(data),
    close: () => void socket.destroy(),
  };
}

async function connectTo(found: FileHandle, path: string): Promise<Socket | null> {
  if (!(await found.stat()).isSocket()) throw new PathNotAllowedError(`${path} is not a socket.`);
  const socket = connect({ path: `/proc/self/fd/${found.fd}` });
  const { promise, resolve, reject } = Promise.withResolvers<Socket | null>();
  const timer = setTimeout(() => socket.destroy(new Error(`not within ${connectMs / 1000} s`)), connectMs);
  socket.once("connect", () => resolve(socket));
  socket.once("error", (error) => {
    if (["ENOENT", "ECONNREFUSED"].includes(errnoOf(error))) return resolve(null);
    const reason = errnoOf(error) || error.message;
    reject(new HypervisorUnavailableError(`The socket ${path} cannot be reached: ${reason}.`, { cause: error }));
  });
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    socket.removeAllListeners("error");
  }
}
