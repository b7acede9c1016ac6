import type { IncomingMessage } from "node:http";
import type { Extent } from "@tephra/engine";
import { BadRequestError } from "./ranges.ts";
import type { Session } from "./session.ts";

/**
 * Writes a body into the image, a piece at a time; no more is taken from the connection meanwhile. Of one that breaks off, whole pieces may
 * have been written, and nothing is from then on: its client may have sent it again, and other bytes for the same place after it.
 */
export async function receiveBytes(
  request: IncomingMessage,
  session: Session,
  { offset, length }: Extent,
): Promise<void> {
  const whole = session.takePiece();
  const piece = whole.subarray(0, length);
  let filled = 0;
  let at = offset;
  const write = async (): Promise<void> => {
    session.requireOpen();
    await session.image.write(piece.subarray(0, filled), at);
    session.touch(filled);
    at += filled;
    filled = 0;
  };
  for await (const chunk of request as AsyncIterable<Buffer>) {
    session.touch();
    for (let taken = 0; taken < chunk.length; ) {
      const part = chunk.copy(piece, filled, taken);
      taken += part;
      filled += part;
      if (filled === piece.length) await write();
    }
  }
  if (filled > 0) await write();
  session.givePieces(whole);
}

/** @throws BadRequestError when it is longer */
export async function receiveText(request: IncomingMessage, bytesMax: number): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bytesMax) throw new BadRequestError(`The body must have at most ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
