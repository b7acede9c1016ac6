import type { Extent } from "@tephra/engine";

/** The bytes that were asked for are not within the image. */
export class OutsideImageError extends Error {
  readonly sizeBytes: number;
  constructor(sizeBytes: number) {
    super("Requested range out of allowed range");
    this.sizeBytes = sizeBytes;
  }
}
/** A header, parameter or body that cannot be understood; the message is what its sender is told. */
export class BadRequestError extends Error {}

/** @throws OutsideImageError unless the image has all of these bytes */
export function within(sizeBytes: number, extent: Extent): Extent {
  const { offset, length } = extent;
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset + length > sizeBytes) {
    throw new OutsideImageError(sizeBytes);
  }
  return extent;
}

/**
 * The bytes that a `Range` names: one range with a start. Null without the header: all.
 *
 * @throws OutsideImageError also for several ranges, and for one that counts from the end; BadRequestError
 */
export function rangeOf(header: string | undefined, sizeBytes: number): Extent | null {
  if (header === undefined) return null;
  const units = /^\s*bytes\s*=\s*(.*)$/.exec(header)?.[1];
  if (units === undefined) throw new BadRequestError(`Invalid Range: ${shown(header)}`);
  const [, first, last = ""] = /^(\d+)\s*-\s*(\d*)\s*$/.exec(units) ?? [];
  if (first === undefined) throw new OutsideImageError(sizeBytes);
  const offset = Number(first);
  const end = last === "" ? sizeBytes : Number(last) + 1;
  if (end <= offset) throw new OutsideImageError(sizeBytes);
  return within(sizeBytes, { offset, length: end - offset });
}

/** Where a `Content-Range` begins: only its start counts. @throws BadRequestError also for one that contradicts itself */
export function startOf(header: string | undefined): number {
  if (header === undefined) return 0;
  const parts = /^\s*bytes\s+(\d+)\s*-\s*(\d+|\*)?\s*(?:\/\s*(\d+|\*))?\s*$/.exec(header);
  // What is not said is not a number, and compares with none.
  const [first = 0, last = Number.NaN, size = Number.NaN] = parts?.slice(1).map(Number) ?? [];
  if (!parts || last < first || size <= last) throw new BadRequestError(`Invalid Content-Range: ${shown(header)}`);
  return first;
}

/** The bytes of a body. @throws BadRequestError unless it says how many */
export function lengthOf(header: string | undefined): number {
  if (header === undefined) throw new BadRequestError("Content-Length header is required");
  if (!/^\d{1,16}$/.test(header)) throw new BadRequestError(`Invalid Content-Length: ${shown(header)}`);
  return Number(header);
}

/** `flush=y` or `flush=n`; `otherwise` where it is not said. @throws BadRequestError */
export function flushOf(query: URLSearchParams, otherwise: boolean): boolean {
  const value = query.get("flush");
  if (value === null) return otherwise;
  if (value === "y" || value === "n") return value === "y";
  throw new BadRequestError(`Unsupported value '${shown(value)}' for 'flush', expecting one of ['n', 'y']`);
}

/** What a `PATCH` asks for. */
export type Patch = { op: "flush" } | { op: "zero"; range: Extent; flush: boolean };

/** @throws BadRequestError, OutsideImageError */
export function patchOf(body: string, sizeBytes: number): Patch {
  const asked = objectOf(body);
  const { op } = asked;
  if (op === undefined) throw new BadRequestError("Missing required value for 'op'");
  if (op === "flush") return { op };
  if (op !== "zero") {
    const told = shown(JSON.stringify(op)).replaceAll('"', "'");
    throw new BadRequestError(`Unsupported value ${told} for 'op', expecting one of ['flush', 'zero']`);
  }
  const length = countOf(asked, "size");
  if (length === null) throw new BadRequestError("Missing required value for 'size'");
  const flush = asked["flush"] ?? false;
  if (typeof flush !== "boolean")
    throw new BadRequestError(`Invalid value for 'flush': ${shown(JSON.stringify(flush))}`);
  return { op, range: within(sizeBytes, { offset: countOf(asked, "offset") ?? 0, length }), flush };
}

function objectOf(body: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    throw new BadRequestError("Invalid JSON message");
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw new BadRequestError("Invalid JSON message: expected an object");
}

function countOf(asked: Record<string, unknown>, name: string): number | null {
  const value = asked[name];
  if (value === undefined) return null;
  if (typeof value === "number" && Number.isInteger(value) && value >= 0) return value;
  throw new BadRequestError(`Invalid value for '${name}': ${shown(JSON.stringify(value))}`);
}

/** A client's own words, as far as they are fit to be repeated. */
export const shown = (text: string): string => text.replaceAll(/[^\x20-\x7e]/g, "?").slice(0, 200);
