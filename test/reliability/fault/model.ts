import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { poll } from "../../../scripts/poll.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { type House, project } from "../../kit/house.ts";
import type { Random } from "../fuzz/random.ts";

/** The longest that anything may take while servers come and go, on a machine that does much else; what takes longer is stuck. */
export const graceMs = 120_000;

const KiB = 1024;

/** A backup as it was asked for: what its volume held then. */
export interface AskedBackup {
  name: string;
  /** Null when the answer was lost and no row has the name: then it was never accepted. */
  id: string | null;
  sha256: string;
  /** Whether it may be gone: its deletion was asked for. */
  dropped: boolean;
}

/** What a request came to. An answer that was lost says nothing about what was done. */
export type Outcome<T> = { kind: "accepted"; answer: T } | { kind: "refused"; status: number } | { kind: "unknown" };

/** Sends a request once: a client that loses the answer must look for itself. */
export async function ask<T>(house: House, method: string, path: string, body?: unknown): Promise<Outcome<T>> {
  try {
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${house.url}/v3/${project}${path}`, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers }),
      signal: AbortSignal.timeout(60_000),
    });
    const text = await response.text();
    // The transaction may have committed although its answer was lost.
    if (response.status >= 500) return { kind: "unknown" };
    if (response.status >= 400) return { kind: "refused", status: response.status };
    return { kind: "accepted", answer: (text === "" ? {} : JSON.parse(text)) as T };
  } catch {
    return { kind: "unknown" };
  }
}

/** Asks until the service has answered: right after a fault it may say 503 for as long as a connection that fell silent is waited for. */
export function insist<T>(house: House, method: string, path: string, body?: unknown): Promise<T> {
  return poll(async () => ({ answer: await house.call<T>(method, path, body) }), {
    what: `${method} ${path} is accepted`,
    timeoutMs: graceMs,
    everyMs: 500,
  }).then(({ answer }) => answer);
}

/** Reads rows, through restarts of the database. */
export function rowsOf<Row extends Record<string, unknown>>(
  house: House,
  text: string,
  params: readonly unknown[] = [],
): Promise<Row[]> {
  return poll(async () => ({ rows: await house.sql<Row>(text, params) }), {
    what: "the database answers",
    timeoutMs: graceMs,
    everyMs: 200,
  }).then(({ rows }) => rows);
}

/** Status of a volume or backup; null when there is no such row, or it is a tombstone. */
export async function statusOf(house: House, table: "volumes" | "backups", id: string): Promise<string | null> {
  const gone = table === "backups" ? " AND deleted_at IS NULL" : "";
  const [row] = await rowsOf<{ status: string }>(house, `SELECT status FROM ${table} WHERE id = $1${gone}`, [id]);
  return row?.status ?? null;
}

/** Waits until nothing is asked of a row any more; the status it rests in, null when it is gone. */
export function rested(
  house: House,
  table: "volumes" | "backups",
  id: string,
  timeoutMs = graceMs,
): Promise<string | null> {
  const moving = ["creating", "backing-up", "restoring-backup", "restoring", "deleting", "uploading", "extending"];
  return poll(
    async () => {
      const status = await statusOf(house, table, id);
      return status === null || !moving.includes(status) ? { status } : undefined;
    },
    { what: `${table} ${id} rests`, timeoutMs, everyMs: 50 },
  ).then(({ status }) => status);
}

export async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * KiB })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** Overwrites parts of a volume's file, on and off the edges of blocks: noise, text or zeros. */
export async function scribble(path: string, sizeBytes: number, random: Random, seed: string): Promise<void> {
  await using file = await open(path, "r+");
  for (let edits = 1 + random.below(6); edits > 0; edits--) {
    const length = Math.min(sizeBytes, 1 + random.below(random.below(2) === 0 ? 4 * KiB : 600 * KiB));
    const aligned = random.below(2) === 0 ? 32 * KiB : 1;
    const offset = Math.floor(random.below(sizeBytes - length + 1) / aligned) * aligned;
    const kind = random.below(3);
    const data =
      kind === 0
        ? Buffer.alloc(length)
        : kind === 1
          ? Buffer.alloc(length, seed)
          : randomBytesOf(`${seed} ${edits}`, length);
    await file.write(data, 0, Math.min(length, sizeBytes - offset), offset);
  }
  await file.sync();
}

/** A file of a length that is no multiple of anything, with data here and there. */
export async function writeImage(path: string, random: Random, seed: string, bytesMin = 300 * KiB): Promise<number> {
  const sizeBytes = bytesMin + random.below(9_000 * KiB);
  {
    await using file = await open(path, "w");
    await file.truncate(sizeBytes);
  }
  await scribble(path, sizeBytes, random, `${seed} first`);
  await scribble(path, sizeBytes, random, `${seed} second`);
  return sizeBytes;
}

export const pause = (ms: number): Promise<void> => delay(ms);
