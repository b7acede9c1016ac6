import { type FileHandle, open, unlink } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { trustMachine } from "../machine-trust.ts";
import { type Caller, reasonOf, UnreachableError } from "./client.ts";
import { OperationFailedError, WaitTimeoutError } from "./wait.ts";

export interface TransferRequest {
  /** A disk, or in a download a disk of a machine's snapshot by the id of its image, or a backup. */
  subject: { disk: { id: string } } | { snapshot: { id: string } } | { backup: { id: string } };
  /** The file that is written or read. */
  path: string;
  format: "raw" | "cow";
  /** How long the service may take to begin, and to finish, a transfer. */
  patienceMs: number;
}

interface ImageTransfer {
  id: string;
  phase: string;
  transfer_url?: string;
}

/** Bytes of a file that are sent with one request. */
const pieceBytes = 8 * 1024 * 1024;
/** How long a request that moves bytes may take without an answer. */
const requestMs = 120_000;
const pollMs = 200;

/** Polls the transfer until it is in that phase. @throws OperationFailedError when it ended in another; WaitTimeoutError */
async function reach(api: Caller, id: string, phase: string, patienceMs: number): Promise<ImageTransfer> {
  const signal = AbortSignal.timeout(patienceMs);
  try {
    for (;;) {
      const transfer = await api.getPatiently<ImageTransfer>(`/imagetransfers/${id}`, signal);
      if (transfer.phase === phase) return transfer;
      if (/^(?:finished|cancelled|paused)_/.test(transfer.phase)) {
        throw new OperationFailedError(`the image transfer ended as ${transfer.phase}`, null);
      }
      await delay(pollMs, undefined, { signal });
    }
  } catch (error) {
    throw signal.aborted ? new WaitTimeoutError(`the image transfer ${id} is not ${phase} in time`) : error;
  }
}

/** Runs `work` while a transfer of the disk is open. One that does not succeed is cancelled, so that the disk is not left locked. */
async function during(
  api: Caller,
  { subject, format, patienceMs }: TransferRequest,
  direction: "upload" | "download",
  work: (url: string) => Promise<void>,
): Promise<void> {
  const asked = { ...subject, direction, format };
  const { id } = await api.post<ImageTransfer>("/imagetransfers", asked);
  const cancel = (): Promise<unknown> => api.post(`/imagetransfers/${id}/cancel`, {}).catch(() => {});
  const interrupted = (signal: NodeJS.Signals): void => {
    void cancel().finally(() => process.exit(signal === "SIGINT" ? 130 : 143));
  };
  process.once("SIGINT", interrupted).once("SIGTERM", interrupted);
  try {
    const { transfer_url: url } = await reach(api, id, "transferring", patienceMs);
    if (url === undefined) throw new OperationFailedError(`the image transfer ${id} has no address`, null);
    if (url.startsWith("https:")) trustMachine();
    await work(url);
    await api.post(`/imagetransfers/${id}/finalize`, {});
    await reach(api, id, "finished_success", patienceMs);
  } catch (error) {
    await cancel();
    throw error;
  } finally {
    process.off("SIGINT", interrupted).off("SIGTERM", interrupted);
  }
}

/** @throws OperationFailedError when the server of images refuses it; UnreachableError */
async function ask(url: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, { ...init, signal: AbortSignal.timeout(requestMs) });
  } catch (cause) {
    throw new UnreachableError(`The server of images does not answer: ${reasonOf(cause)}`, { cause });
  }
  if (response.ok) return response;
  const text = (await response.text().catch(() => "")).trim().slice(0, 200);
  throw new OperationFailedError(`the server of images refused it: ${response.status} ${text}`, null);
}

interface ImageExtent {
  start: number;
  length: number;
  zero: boolean;
}

/** Writes what may not be zero; the rest of the file is a hole. @returns bytes of the file */
export async function downloadTo(api: Caller, request: TransferRequest): Promise<number> {
  const file = await open(request.path, "wx");
  let size = 0;
  try {
    await during(api, request, "download", async (url) => {
      const extents = (await (await ask(`${url}/extents`)).json()) as ImageExtent[];
      size = extents.reduce((end, { start, length }) => Math.max(end, start + length), 0);
      await file.truncate(size);
      for (const { start, length, zero } of extents) {
        for (let at = start; !zero && at < start + length; at += pieceBytes) {
          await fetchPiece(url, file, at, Math.min(pieceBytes, start + length - at));
        }
      }
      await file.sync();
    });
  } catch (error) {
    await unlink(request.path).catch(() => {});
    throw error;
  } finally {
    await file.close();
  }
  return size;
}

async function fetchPiece(url: string, file: FileHandle, offset: number, length: number): Promise<void> {
  const range = `bytes=${offset}-${offset + length - 1}`;
  const bytes = Buffer.from(await (await ask(url, { headers: { range } })).arrayBuffer());
  if (bytes.length !== length) throw new OperationFailedError("the server of images sent fewer bytes", null);
  for (let done = 0; done < length; ) {
    done += (await file.write(bytes, done, length - done, offset + done)).bytesWritten;
  }
}

/** Sends a file; pieces of zeros are not sent, but asked for. @returns bytes of the file */
export async function uploadFrom(api: Caller, request: TransferRequest): Promise<number> {
  await using file = await open(request.path, "r");
  const { size } = await file.stat();
  await during(api, request, "upload", async (url) => {
    const piece = Buffer.allocUnsafe(Math.min(pieceBytes, size));
    for (let at = 0; at < size; at += pieceBytes) {
      const bytes = piece.subarray(0, Math.min(pieceBytes, size - at));
      await fill(file, bytes, at);
      if (!isZero(bytes)) await putPiece(url, bytes, at);
      else await patch(url, { op: "zero", offset: at, size: bytes.length });
    }
    await patch(url, { op: "flush" });
  });
  return size;
}

async function fill(file: FileHandle, into: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await file.read(into, done, into.length - done, offset + done);
    if (bytesRead === 0) throw new OperationFailedError("the file has become shorter", null);
    done += bytesRead;
  }
}

/** Equal to itself moved by a byte, and beginning with zero. */
const isZero = (bytes: Buffer): boolean => bytes[0] === 0 && bytes.subarray(1).equals(bytes.subarray(0, -1));

async function putPiece(url: string, bytes: Buffer, offset: number): Promise<void> {
  const headers = { "content-range": `bytes ${offset}-${offset + bytes.length - 1}/*` };
  await ask(`${url}?flush=n`, { method: "PUT", headers, body: new Uint8Array(bytes) });
}

const patch = (url: string, asked: object): Promise<Response> =>
  ask(url, { method: "PATCH", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) });
