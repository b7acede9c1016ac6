import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Extent } from "@tephra/engine";
import { pieceBytes } from "./image.ts";
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

/** Sends a part of the image. The next piece is read while one is being sent. */
export async function sendBytes(response: ServerResponse, session: Session, { offset, length }: Extent): Promise<void> {
  const end = offset + length;
  const read = async (at: number): Promise<Uint8Array> => {
    const piece = Buffer.allocUnsafe(Math.min(pieceBytes, end - at));
    await session.image.read(piece, at);
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
    response.write(piece);
    await roomIn(response);
    session.touch(piece.length);
  }
  response.end();
}

export async function sendExtents(response: ServerResponse, session: Session): Promise<void> {
  let text = "[";
  let parts = 0;
  const headers = { "content-type": "application/json" };
  for await (const extent of session.image.extents()) {
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
