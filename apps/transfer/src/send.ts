import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Extent, VolumeSource } from "@tephra/engine";
import { spaced } from "./replies.ts";
import { type Session, SessionEndedError } from "./session.ts";

/** Lists of extents up to this length are sent with their length, longer ones in chunks. */
const listBytesMax = 64 * 1024;

/** Settles when the response takes more. @throws SessionEndedError when its connection is gone */
async function roomIn(response: ServerResponse): Promise<void> {
  if (response.destroyed) throw new SessionEndedError();
  if (!response.writableNeedDrain) return;
  const gone = new AbortController();
  const closed = (): void => gone.abort();
  response.once("close", closed);
  try {
    await once(response, "drain", { signal: gone.signal });
  } catch {
    throw new SessionEndedError();
  } finally {
    response.off("close", closed);
  }
}

/** Settles when the bytes have been given to the kernel, so that their memory is free again. @throws SessionEndedError when the connection is gone */
async function handOver(response: ServerResponse, piece: Uint8Array): Promise<void> {
  if (response.destroyed) throw new SessionEndedError();
  const done = Promise.withResolvers<void>();
  const closed = (): void => done.reject(new SessionEndedError());
  response.once("close", closed);
  try {
    response.write(piece, (error) => (error ? closed() : done.resolve()));
    await done.promise;
  } finally {
    response.off("close", closed);
  }
}

/** Sends a part of the image, or of another source. The next piece is read while one is being sent, in turns into one of two buffers. */
export async function sendBytes(
  response: ServerResponse,
  session: Session,
  { offset, length }: Extent,
  source: Pick<VolumeSource, "read"> = session.image,
): Promise<void> {
  const end = offset + length;
  const [one, other] = [session.takePiece(), session.takePiece()];
  let isOther = false;
  const read = async (at: number): Promise<Uint8Array> => {
    isOther = !isOther;
    const piece = (isOther ? other : one).subarray(0, end - at);
    await source.read(piece, at);
    return piece;
  };
  let next: Promise<Uint8Array> | null = length > 0 ? read(offset) : null;
  for (let at = offset; at < end; ) {
    const piece = await next;
    if (piece === null) break;
    session.requireOpen();
    at += piece.length;
    next = at < end ? read(at) : null;
    next?.catch(() => {});
    await handOver(response, piece);
    session.touch(piece.length);
  }
  session.givePieces(one, other);
  response.end();
}

export async function sendExtents(
  response: ServerResponse,
  session: Session,
  extents: AsyncIterable<object>,
): Promise<void> {
  let text = "[";
  let parts = 0;
  const headers = { "content-type": "application/json" };
  for await (const extent of extents) {
    session.requireOpen();
    text += `${parts === 0 ? "" : ", "}${spaced(extent)}`;
    parts += 1;
    if (text.length < listBytesMax) continue;
    if (!response.headersSent) response.writeHead(200, headers);
    response.write(text);
    await roomIn(response);
    session.touch();
    text = "";
  }
  text += "]\n";
  if (!response.headersSent) response.writeHead(200, { ...headers, "content-length": String(Buffer.byteLength(text)) });
  response.end(text);
}
