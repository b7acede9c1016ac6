import type { IncomingMessage, RequestListener, ServerResponse } from "node:http";
import type { Logger } from "@tephra/control";
import { mayPass } from "@tephra/control/process";
import { EngineError, type FileReaders, FilesError, VolumeStorageFullError } from "@tephra/engine";
import { answerFiles, endFault, type FilesPart, refuseFiles } from "./files.ts";
import {
  BadRequestError,
  flushOf,
  lengthOf,
  OutsideImageError,
  patchOf,
  rangeOf,
  shown,
  startOf,
  within,
} from "./ranges.ts";
import { receiveBytes, receiveText } from "./receive.ts";
import { sendJson, sendNothing, sendText } from "./replies.ts";
import { sendBytes, sendExtents } from "./send.ts";
import { type Session, SessionEndedError } from "./session.ts";

/* The data plane of image transfers, as oVirt's image server has it (docs/ovirt.md). A ticket in the path is the whole right to an image. */

const refusal = "You are not allowed to access this resource:";

/** A request in progress. */
interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
  session: Session;
  query: URLSearchParams;
}

/** Where there is nothing; `text` is what the client is told. */
class NotThereError extends Error {}
/** The ticket gives no such right. */
class ForbiddenError extends Error {}

/** Of a request to zero or flush, in bytes. */
const patchBytesMax = 4_096;

export interface DataPlaneOptions {
  sessionFor(ticket: string): Promise<Session | null>;
  connectionsMax: number;
  readers: FileReaders;
  log: Logger;
}

export function dataPlane(options: DataPlaneOptions): RequestListener {
  return (request, response) => {
    handle(options, request, response).catch((error: unknown) => fail(options.log, request, response, error));
  };
}

async function handle(options: DataPlaneOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { method = "", url = "" } = request;
  const [path = "", search = ""] = url.split("?", 2);
  const [, filesTicket, part] = /^\/files\/([^/]+)\/(partitions|list|content)$/.exec(path) ?? [];
  if (filesTicket !== undefined && method === "GET") {
    const query = new URLSearchParams(search);
    return handleFiles(options, { request, response, query, ticket: filesTicket, part: part as FilesPart });
  }
  const [, ticket, extents] = /^\/images\/([^/]+)(\/extents)?$/.exec(path) ?? [];
  if (ticket === undefined) throw new NotThereError(`No handler for '${shown(path)}'`);
  const limits = { max_readers: options.connectionsMax, max_writers: options.connectionsMax };
  if (method === "OPTIONS" && ticket === "*") {
    return sendJson(response, { features: ["extents", "zero", "flush"], ...limits }, { allow: writable });
  }
  const methods = extents === undefined ? ["OPTIONS", "GET", "PUT", "PATCH"] : ["GET"];
  if (!methods.includes(method)) {
    const text = `Method '${method}' not defined for '${shown(path)}'`;
    return sendText(response, text, { status: 405, close: true });
  }
  const session = await options.sessionFor(ticket);
  if (session === null) throw new ForbiddenError(`No such ticket ${shown(ticket)}`);
  session.touch();
  const exchange = { request, response, session, query: new URLSearchParams(search) };
  if (extents !== undefined) return answerExtents(exchange);
  if (method === "OPTIONS") {
    const { isWritable } = session.image;
    const features = isWritable ? ["extents", "flush", "zero"] : ["extents"];
    return sendJson(response, { features, ...limits }, { allow: isWritable ? writable : "OPTIONS,GET" });
  }
  if (method === "GET") return answerGet(exchange);
  if (!session.image.isWritable) throw new ForbiddenError(`Transfer=${session.row.id} forbids write`);
  return method === "PUT" ? answerPut(exchange) : answerPatch(exchange);
}

const writable = "OPTIONS,GET,PUT,PATCH";

interface FilesRequest extends Omit<Exchange, "session"> {
  ticket: string;
  part: FilesPart;
}

async function handleFiles({ sessionFor, readers, log }: DataPlaneOptions, asked: FilesRequest): Promise<void> {
  const { request, response, query, ticket, part } = asked;
  const session = await sessionFor(ticket);
  if (session === null) return endFault(response, 403, "There is no such ticket.");
  session.touch();
  const { range } = request.headers;
  try {
    await moving({ request, response, session, query }, () =>
      answerFiles(part, { response, session, query, range, readers }),
    );
  } catch (error) {
    if (response.headersSent || request.socket.destroyed || error instanceof OutsideImageError) throw error;
    if (error instanceof FilesError) return refuseFiles(response, error);
    if (error instanceof BadRequestError) return endFault(response, 400, error.message);
    if (error instanceof SessionEndedError) return endFault(response, 403, "There is no such ticket.");
    log.warn({ err: error }, "files could not be read");
    endFault(response, statusOf(error) === 503 ? 503 : 500, failureText(error));
  }
}

/** Runs a request that moves bytes; it is cut off when the session ends. */
const moving = ({ session, request }: Exchange, work: () => Promise<void>): Promise<void> =>
  session.during(() => request.socket.destroy(), work);

async function answerGet(exchange: Exchange): Promise<void> {
  const { request, response, session } = exchange;
  const { sizeBytes } = session.image;
  const range = rangeOf(request.headers.range, sizeBytes);
  const extent = range ?? { offset: 0, length: sizeBytes };
  await moving(exchange, async () => {
    response.writeHead(range === null ? 200 : 206, {
      "content-length": String(extent.length),
      "content-type": "application/octet-stream",
      "content-disposition": "attachment",
      ...(range && { "content-range": `bytes ${extent.offset}-${extent.offset + extent.length - 1}/${sizeBytes}` }),
    });
    await sendBytes(response, session, extent);
  });
}

async function answerExtents(exchange: Exchange): Promise<void> {
  const { response, session, query } = exchange;
  const context = query.get("context") ?? "zero";
  const { image } = session;
  if (context === "dirty" && !image.tellsChanges) throw new NotThereError("Ticket does not support dirty extents");
  if (context !== "zero" && context !== "dirty") {
    throw new BadRequestError(
      `Unsupported value '${shown(context)}' for 'context', expecting one of ['zero', 'dirty']`,
    );
  }
  await moving(exchange, () =>
    sendExtents(response, session, context === "dirty" ? image.dirtyExtents() : image.extents()),
  );
}

async function answerPut(exchange: Exchange): Promise<void> {
  const { request, response, session, query } = exchange;
  const flush = flushOf(query, true);
  const length = lengthOf(request.headers["content-length"]);
  const extent = within(session.image.sizeBytes, { offset: startOf(request.headers["content-range"]), length });
  await moving(exchange, async () => {
    await receiveBytes(request, session, extent);
    if (flush) await session.image.flush();
    sendNothing(response);
  });
}

async function answerPatch(exchange: Exchange): Promise<void> {
  const { request, response, session } = exchange;
  const length = lengthOf(request.headers["content-length"]);
  if (length > patchBytesMax) throw new BadRequestError(`Content-Length must be at most ${patchBytesMax}`);
  const patch = patchOf(await receiveText(request, patchBytesMax), session.image.sizeBytes);
  await moving(exchange, async () => {
    if (patch.op === "zero") {
      await session.image.zero(patch.range, () => session.requireOpen());
      session.touch(patch.range.length);
    }
    if (patch.op === "flush" || patch.flush) await session.image.flush();
    sendNothing(response);
  });
}

/** A refusal that may leave a body unread ends its connection. */
function fail(log: Logger, request: IncomingMessage, response: ServerResponse, error: unknown): void {
  const close = request.method === "PUT" || request.method === "PATCH";
  if (response.headersSent || request.socket.destroyed) {
    request.socket.destroy();
    if (!isExpected(error)) log.warn({ err: error }, "an image request broke off");
  } else if (error instanceof NotThereError) {
    sendText(response, error.message, { status: 404, close });
  } else if (error instanceof ForbiddenError) {
    sendText(response, `${refusal} ${error.message}`, { status: 403, close: true });
  } else if (error instanceof SessionEndedError) {
    sendText(response, `${refusal} No such ticket`, { status: 403, close: true });
  } else if (error instanceof OutsideImageError) {
    sendOutside(response, error, close);
  } else if (error instanceof BadRequestError) {
    sendText(response, error.message, { status: 400, close: true });
  } else {
    log.warn({ err: error }, "an image request failed");
    sendText(response, failureText(error), { status: statusOf(error), close: true });
  }
}

function sendOutside(response: ServerResponse, { sizeBytes, message }: OutsideImageError, close: boolean): void {
  const headers = { "content-range": `bytes */${sizeBytes}` };
  sendText(response, message, { status: 416, close, headers });
}

/** The client has gone. */
const isExpected = (error: unknown): boolean =>
  error instanceof SessionEndedError ||
  ["ECONNRESET", "ERR_STREAM_PREMATURE_CLOSE"].includes((error as { code?: string }).code ?? "");

const statusOf = (error: unknown): number => {
  if (error instanceof VolumeStorageFullError) return 507;
  return mayPass(error) || (error instanceof EngineError && error.retryable) ? 503 : 500;
};

/** Storage's words may name folders. */
const failureText = (error: unknown): string =>
  error instanceof VolumeStorageFullError ? "No space left on the storage" : "The storage could not do it";
