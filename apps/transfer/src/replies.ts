import { type ServerResponse, STATUS_CODES } from "node:http";

/*
 * Answers have the form of oVirt's image server: one line of text or JSON with the spaces that Python puts into it. A request that is
 * refused before its body was read ends its connection.
 */

/** Where oVirt has another phrase than Node. */
const reasons: Readonly<Record<number, string>> = { 416: "Requested Range Not Satisfiable" };

interface Reply {
  status: number;
  headers?: Record<string, string>;
  /** Whether the connection ends with it. */
  close?: boolean;
}

export function sendText(response: ServerResponse, text: string, { status, headers = {}, close = false }: Reply): void {
  send(response, `${text}\n`, { status, close, headers: { "content-type": "text/plain; charset=UTF-8", ...headers } });
}

export function sendJson(response: ServerResponse, value: unknown, headers: Record<string, string> = {}): void {
  send(response, `${spaced(value)}\n`, { status: 200, headers: { "content-type": "application/json", ...headers } });
}

export function sendNothing(response: ServerResponse): void {
  send(response, "", { status: 200 });
}

function send(response: ServerResponse, body: string, { status, headers = {}, close = false }: Reply): void {
  const length = { "content-length": String(Buffer.byteLength(body)) };
  response.writeHead(status, reasons[status] ?? STATUS_CODES[status], {
    ...length,
    ...(close && { connection: "close" }),
    ...headers,
  });
  response.end(body);
}

/** JSON as Python writes it. */
export function spaced(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, item]) => `${JSON.stringify(key)}: ${spaced(item)}`)
    .join(", ")}}`;
}
