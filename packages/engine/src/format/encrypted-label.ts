/**
 * `_metadata` of an encrypted backup: a JSON document that every reader can recognize as unreadable without the key. Cinder rejects the
 * version. The frames hold the document of a plain backup; the fields after them serve listings without a key and are ignored when there
 * is one.
 *
 *     {
 *       "encrypted": [
 *         "<base64 of a frame>",
 *         "<base64 of a frame>"
 *       ],
 *       "backup_id": …, "created_at": …, "object_count": …, "parent_id": …, "version": …, "volume_bytes": …, "volume_id": …
 *     }
 */
export const encryptedVersion = "tephra-encrypted-1";

/** The JSON key under which the frames are listed. */
export const framesKey = "encrypted";

/** What an encrypted backup states without its key. Not authenticated. */
export interface EncryptedLabel {
  backupId: string | null;
  volumeId: string | null;
  parentId: string | null;
  createdAt: string | null;
  volumeBytes: number;
  objects: number;
}

export const framesMagic = Buffer.from("tephra\0\u0001", "latin1");
