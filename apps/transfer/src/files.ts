import type { ServerResponse } from "node:http";
import { type FileReaders, FilesError, type ListedFile, type PartitionDetails } from "@tephra/engine";
import { BadRequestError, rangeOf } from "./ranges.ts";
import { sendBytes } from "./send.ts";
import type { Session } from "./session.ts";

/*
 * The files of what a ticket gives a right to, below `/files/TICKET`: `partitions`, `list` and `content`. Answers and refusals have the
 * form of the routes below `/ops`, since what the API passes on is theirs.
 */

export type FilesPart = "partitions" | "list" | "content";

export interface FilesExchange {
  response: ServerResponse;
  session: Session;
  query: URLSearchParams;
  /** The request's header. */
  range: string | undefined;
  readers: FileReaders;
}

const limitMax = 1_000;

export async function answerFiles(part: FilesPart, exchange: FilesExchange): Promise<void> {
  const { response, session, query, readers } = exchange;
  const { image } = session;
  if (session.row.direction !== "download" || session.row.format !== "raw")
    throw new FilesError("unfit", "Files are read of downloads of raw disks alone.");
  if (part === "partitions") {
    const partitions = await readers.ask(image, { kind: "partitions" });
    return endJson(response, 200, { partitions: partitions.map(partitionView) });
  }
  const [path, partition] = [query.get("path") ?? "/", wholeOf(query, "partition", null)];
  if (part === "content") return sendContent(exchange, { path, partition });
  const [after, limit] = [wholeOf(query, "marker", 0), wholeOf(query, "limit", limitMax)];
  if (limit < 1 || limit > limitMax) throw new BadRequestError(`limit: must be from 1 to ${limitMax}`);
  const listing = await readers.ask(image, { kind: "list", path, partition, after, limit });
  endJson(response, 200, {
    partition: listing.partition,
    file_system: listing.fileSystem,
    files: listing.files.map(fileView),
    next_marker: listing.next === null ? null : String(listing.next),
  });
}

async function sendContent(exchange: FilesExchange, file: { path: string; partition: number | null }): Promise<void> {
  const { response, session, readers } = exchange;
  const content = await readers.open(session.image, file);
  const { sizeBytes } = content;
  const range = sizeBytes === 0 ? null : rangeOf(exchange.range, sizeBytes);
  const extent = range ?? { offset: 0, length: sizeBytes };
  response.writeHead(range === null ? 200 : 206, {
    "content-length": String(extent.length),
    "content-type": "application/octet-stream",
    // The name is the image's: no client should write to a place that it says.
    "content-disposition": "attachment",
    "x-content-type-options": "nosniff",
    "accept-ranges": "bytes",
    ...(range && { "content-range": `bytes ${extent.offset}-${extent.offset + extent.length - 1}/${sizeBytes}` }),
  });
  await sendBytes(response, session, extent, content);
}

/** @throws BadRequestError */
function wholeOf<Default extends number | null>(query: URLSearchParams, key: string, other: Default): number | Default {
  const text = query.get(key);
  if (text === null) return other;
  if (!/^\d{1,15}$/.test(text)) throw new BadRequestError(`${key}: is not a whole number`);
  return Number(text);
}

const timeOf = (seconds: number | null): string | null =>
  seconds === null ? null : new Date(seconds * 1_000).toISOString();

const fileView = ({ modifiedAt, ...file }: ListedFile) => ({ ...file, mtime: timeOf(modifiedAt) });

const partitionView = (found: PartitionDetails) => ({
  number: found.number,
  offset: found.start,
  bytes: found.length,
  name: found.name,
  file_system: found.fileSystem,
  label: found.label,
  needs_recovery: found.isUnclean,
  problem: found.problem,
});

const statuses = { invalid: 400, missing: 404, unfit: 409, damaged: 422 } as const;
const faultNames = {
  400: "badRequest",
  403: "forbidden",
  404: "itemNotFound",
  409: "conflictingRequest",
  422: "unprocessableEntity",
  500: "computeFault",
  503: "serviceUnavailable",
} as const;

export function refuseFiles(response: ServerResponse, { kind, message }: FilesError): void {
  endFault(response, statuses[kind], message);
}

/** In the form of the routes below `/ops`. */
export function endFault(response: ServerResponse, code: keyof typeof faultNames, message: string): void {
  endJson(response, code, { [faultNames[code]]: { code, message } });
}

function endJson(response: ServerResponse, status: number, body: object): void {
  const text = JSON.stringify(body);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}
