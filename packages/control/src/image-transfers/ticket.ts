import { createHash, createHmac, randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Config } from "../config.ts";
import { makeOnce } from "../make-once.ts";

/*
 * A ticket is the whole right to a volume's bytes, so the database has its hash only. It is derived from a key that the API and the
 * processes that serve share, so that each of them can tell a client what its ticket is, also after a restart.
 */

const keyBytes = 32;

/** The key's file: made at first use, readable by its owner alone. */
export function ticketKey(config: Config): Buffer {
  const path = resolve(config.image_transfers?.key_file ?? join(config.data_dir, "run", "image-tickets.key"));
  if (!existsSync(path)) makeOnce(path, `${randomBytes(keyBytes).toString("hex")}\n`);
  const key = Buffer.from(readFileSync(path, "utf8").trim(), "hex");
  if (key.length !== keyBytes) throw new Error(`${path} must contain ${keyBytes} bytes as hexadecimal digits`);
  return key;
}

export const hashOfTicket = (ticket: string): string => createHash("sha256").update(ticket).digest("hex");

const derive = (key: Buffer, transferId: string, nonce: string): string =>
  createHmac("sha256", key).update(`${transferId}:${nonce}`).digest("hex");

/** A new ticket of 256 bits, as what is stored of it. */
export function newTicket(key: Buffer, transferId: string): { ticketNonce: string; ticketHash: string } {
  const ticketNonce = randomBytes(16).toString("hex");
  return { ticketNonce, ticketHash: hashOfTicket(derive(key, transferId, ticketNonce)) };
}

/** Null where no ticket is valid, or it was made with another key. */
export function ticketOf(
  key: Buffer,
  { id, ticketNonce, ticketHash }: { id: string; ticketNonce: string | null; ticketHash: string | null },
): string | null {
  if (ticketNonce === null || ticketHash === null) return null;
  const ticket = derive(key, id, ticketNonce);
  return hashOfTicket(ticket) === ticketHash ? ticket : null;
}
