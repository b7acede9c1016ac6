/**
 * `_metadata` of an encrypted backup: a JSON document of which every reader can tell that it is not for him. A Cinder refuses the
 * version. The frames hold the document of a plain backup; what stands behind them is for listings without a key, and not read
 * where there is one.
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

/** The key of the list of frames. */
export const framesKey = "encrypted";

/** What an encrypted backup says without its key. Not authenticated. */
export interface EncryptedLabel {
  backupId: string | null;
  volumeId: string | null;
  parentId: string | null;
  createdAt: string | null;
  volumeBytes: number;
  objects: number;
}

export const framesMagic = Buffer.from("tephra\0\u0001", "latin1");
