import type { ServerResponse } from "node:http";

/** OpenStack's names for the outer key of an error body, by status (cinder-api 4.1). */
const faultNames: Readonly<Record<number, string>> = {
  400: "badRequest",
  401: "unauthorized",
  403: "forbidden",
  404: "itemNotFound",
  405: "badMethod",
  409: "conflictingRequest",
  413: "overLimit",
  415: "badMediaType",
  422: "unprocessableEntity",
  429: "overLimit",
  501: "notImplemented",
  503: "serviceUnavailable",
};

/** An error as the caller sees it. `retryAfter` in seconds, for the header and, as text, for the body. */
export interface Fault {
  status: number;
  message: string;
  retryAfter?: number;
}

/** Cinder's error envelope. */
export function faultBody(fault: Fault): Record<string, unknown> {
  const retry = fault.retryAfter === undefined ? {} : { retryAfter: String(fault.retryAfter) };
  return { [faultNames[fault.status] ?? "computeFault"]: { code: fault.status, message: fault.message, ...retry } };
}

/** Shown to the caller for an unexpected error; the log has the details under the request id. */
export const unexpectedFault: Fault = {
  status: 500,
  message: "The server has either erred or is incapable of performing the requested operation.",
};

export const outageFault: Fault = {
  status: 503,
  message: "The service is temporarily unable to reach its database. Try again later.",
  retryAfter: 2,
};

export const identityFault: Fault = { status: 503, message: "The Keystone service is temporarily unavailable." };

/** Ends the response with JSON, or without a body when `body` is undefined. The content type is Cinder's, without a charset. */
export function endJson(res: ServerResponse, status: number, body?: unknown): void {
  const text = body === undefined ? "" : JSON.stringify(body);
  res.statusCode = status;
  if (!res.hasHeader("content-type")) res.setHeader("content-type", "application/json");
  res.setHeader("content-length", Buffer.byteLength(text));
  res.end(text);
}

export function endFault(res: ServerResponse, fault: Fault): void {
  if (fault.retryAfter !== undefined) res.setHeader("retry-after", String(fault.retryAfter));
  endJson(res, fault.status, faultBody(fault));
}
