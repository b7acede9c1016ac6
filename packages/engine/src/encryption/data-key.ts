import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { parseStrictJson } from "@tephra/format";
import { z } from "zod";
import type { MasterKey } from "./master-keys.ts";

/**
 * The data key of a backup as stored in `<prefix>_key_<version>`: wrapped by the master key of that version, by AES-256-GCM with a random
 * nonce. The additional data is the object's name, so that one backup's key is not accepted as another's.
 */
const wrapped = z.strictObject({
  tephra_key: z.literal(1),
  cipher: z.literal("aes-256-gcm"),
  nonce: z.base64().length(16),
  /** Ciphertext and tag. */
  wrapped: z.base64().length(64),
});
const dataKeyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;
/** Upper bound on the size of a key object. */
export const keyObjectBytesMax = 4096;

export function newDataKey(): Buffer {
  return randomBytes(dataKeyBytes);
}

/** The bytes of a key object; they differ on every call. */
export function wrapDataKey(dataKey: Uint8Array, master: MasterKey, name: string): Uint8Array {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv("aes-256-gcm", wrappingKey(master), nonce).setAAD(Buffer.from(name));
  const bytes = Buffer.concat([cipher.update(dataKey), cipher.final(), cipher.getAuthTag()]);
  const document = { tephra_key: 1, cipher: "aes-256-gcm", nonce: nonce.toString("base64") };
  return Buffer.from(JSON.stringify({ ...document, wrapped: bytes.toString("base64") }));
}

/** The data key in a key object; null when it was wrapped with a different master key or name. */
export function unwrapDataKey(object: Uint8Array, master: MasterKey, name: string): Buffer | null {
  const parsed = wrapped.safeParse(parseJson(object));
  if (!parsed.success) return null;
  const bytes = Buffer.from(parsed.data.wrapped, "base64");
  const nonce = Buffer.from(parsed.data.nonce, "base64");
  if (bytes.length !== dataKeyBytes + tagBytes || nonce.length !== nonceBytes) return null;
  const decipher = createDecipheriv("aes-256-gcm", wrappingKey(master), nonce, { authTagLength: tagBytes });
  decipher.setAAD(Buffer.from(name)).setAuthTag(bytes.subarray(dataKeyBytes));
  const dataKey = decipher.update(bytes.subarray(0, dataKeyBytes));
  try {
    decipher.final();
  } catch {
    return null;
  }
  return dataKey;
}

function wrappingKey(master: MasterKey): Buffer {
  return Buffer.from(hkdfSync("sha256", master.secret, "", "tephra wrap 1", dataKeyBytes));
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return parseStrictJson(bytes, keyObjectBytesMax);
  } catch {
    return null;
  }
}
