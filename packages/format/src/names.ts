/**
 * Names in a repository, and limits on what is stored about a backup: one definition each, for every code path that creates, lists,
 * removes, exports or imports them. A name accepted here is recognized by all of them.
 */

/** Whatever of ours is not a backup lies in containers with a path segment that starts with this; users cannot name such containers. */
export const reservedContainer = ".tephra";
/** Longest container name in bytes: the limit for S3 records, and the longest name that a file system allows. */
export const containerBytesMax = 255;

/**
 * Why a text cannot be a backup's container, or null. A container is a relative path of at most 255 bytes without empty, `.` or `..`
 * segments, control characters, backslashes or reserved segments. Stores impose narrower rules of their own. A path that escapes through a
 * symbolic link is refused when it is used.
 */
export function containerProblem(text: string): string | null {
  if (text.length === 0) return "it is empty";
  if (Buffer.byteLength(text) > containerBytesMax) return `it is longer than ${containerBytesMax} bytes`;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it rejects
  if (/[\u0000-\u001f\u007f\\]/.test(text)) return "it has a control character or a backslash";
  if (!text.isWellFormed()) return "it is not well-formed Unicode";
  if (text.startsWith("/")) return "it is absolute";
  const parts = text.split("/");
  if (parts.some((part) => part === "" || part === "." || part === "..")) return "it has an empty, . or .. part";
  if (parts.some((part) => part.startsWith(reservedContainer)))
    return `names that start with ${reservedContainer} are reserved`;
  return null;
}

export const isContainer = (text: string): boolean => containerProblem(text) === null;

/**
 * The repository's root folder, as a container. Cinder's file-system drivers put a backup there when the requested container is an empty
 * string, as Horizon sends it. It is stored as this value and shown as an empty string; users cannot name it.
 */
export const rootContainer = "/";

/** A container as shown in responses and records. */
export const toldContainer = (container: string | null): string | null =>
  container === rootContainer ? "" : container;

/** Ids of backups and volumes as they appear in names and documents; current services write UUIDs. */
export const backupIdPattern = /^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/;

/** Availability zones are part of names in object stores. */
export const zonePattern = /^[ -.0-[\]-~]{1,255}$/;

/**
 * Every form of prefix that a Cinder driver writes: `volume_<id>_<time>_backup_<id>` on file systems,
 * `volume_<id>/<time>/az_<zone>_backup_<id>` on object stores. Anything shorter could reach another backup's objects.
 */
const prefixPattern =
  /^volume_[A-Za-z0-9][A-Za-z0-9-]{0,63}(?:_\d{14}|\/\d{14}\/az_[ -.0-[\]-~]{1,255})_backup_[A-Za-z0-9][A-Za-z0-9-]{0,63}$/;

/** Whether a text is the complete prefix of a backup's objects; Cinder calls it service_metadata. */
export const isObjectPrefix = (text: string): boolean => prefixPattern.test(text);

/** The form that current services give their prefixes: a time and a full UUID. */
const datedPrefix =
  /(?:_|\/)(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\/az_.*)?_backup_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

/** The backup's id (a UUID) and the time from a prefix; null where it has another form. */
export function readDatedPrefix(prefix: string): { backupId: string; begunAt: Date } | null {
  const [, year, month, day, hour, minute, second, backupId] = datedPrefix.exec(prefix) ?? [];
  const begunAt = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  return backupId === undefined || Number.isNaN(begunAt.getTime()) ? null : { backupId, begunAt };
}

/** The id at the end of a prefix. */
export const idOfPrefix = (prefix: string): string => prefix.slice(prefix.lastIndexOf("_") + 1);

/** Versions of master keys: without `_` and `-`, so that no other name of a backup can be mistaken for a key's. */
export const keyVersionPattern = /^[A-Za-z0-9][A-Za-z0-9.]{0,31}$/;

/** The prefix in the name of a backup's object, or null when the name is not one. */
export function prefixOf(name: string): string | null {
  const prefix = name.replace(/(?:-\d{5,15}|_metadata|_sha256file|_key_[A-Za-z0-9][A-Za-z0-9.]{0,31})$/, "");
  return prefix !== name && prefixPattern.test(prefix) ? prefix : null;
}

/** Longest name, description, metadata key or metadata value, in characters (code points). */
export const textCharactersMax = 255;
/** Largest size in GiB and largest object count: what a catalogue column holds. */
export const columnMax = 2 ** 31 - 1;

/** Smaller blocks would make the hash list a significant fraction of the volume. */
export const blockBytesMin = 512;
/** Each window is held in memory as a whole. */
export const objectBytesMax = 256 * 1024 * 1024;
