/**
 * The names in a repository, and the limits of what is said about a backup: one definition each, for every door that takes, lists, removes,
 * exports or imports them. What passes here is found by all of them.
 */

/** Everything that is ours and no backup lies in containers of which a part starts so; users cannot name them. */
export const reservedContainer = ".tephra";
/** The longest container, in bytes: that of S3 records, and the most that one name of a file system may have. */
export const containerBytesMax = 255;

/**
 * Why a text cannot be the container of a backup, or null: a relative path of at most 255 bytes without empty, `.` or `..` parts, control
 * characters, backslashes or parts that are reserved. Stores have narrower rules besides. That it leads out through a symbolic link
 * is refused when it is used.
 */
export function containerProblem(text: string): string | null {
  if (text.length === 0) return "it is empty";
  if (Buffer.byteLength(text) > containerBytesMax) return `it is longer than ${containerBytesMax} bytes`;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
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
 * The folder of a repository itself, as a container. Cinder's drivers for file systems put a backup there whose container was asked for as
 * an empty text, as Horizon does. It is kept so and told as an empty text; nobody can name it.
 */
export const rootContainer = "/";

/** A container as answers and records have it. */
export const toldContainer = (container: string | null): string | null =>
  container === rootContainer ? "" : container;

/** Ids of backups and volumes as they stand in names and documents; services of today write uuids. */
export const backupIdPattern = /^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/;

/** Availability zones are part of names in object stores. */
export const zonePattern = /^[ -.0-[\]-~]{1,255}$/;

/**
 * Every form of prefix that a Cinder driver writes: `volume_<id>_<time>_backup_<id>` on file systems,
 * `volume_<id>/<time>/az_<zone>_backup_<id>` on object stores. Anything shorter could reach another backup's objects.
 */
const prefixPattern =
  /^volume_[A-Za-z0-9][A-Za-z0-9-]{0,63}(?:_\d{14}|\/\d{14}\/az_[ -.0-[\]-~]{1,255})_backup_[A-Za-z0-9][A-Za-z0-9-]{0,63}$/;

/** Whether a text is a whole prefix of a backup's objects; Cinder calls it service_metadata. */
export const isObjectPrefix = (text: string): boolean => prefixPattern.test(text);

/** In the form that services of today give their prefixes: a time and a whole uuid. */
const datedPrefix =
  /(?:_|\/)(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\/az_.*)?_backup_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

/** The backup's id, a uuid, and the time in a prefix; null where it has another form. */
export function readDatedPrefix(prefix: string): { backupId: string; begunAt: Date } | null {
  const [, year, month, day, hour, minute, second, backupId] = datedPrefix.exec(prefix) ?? [];
  const begunAt = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  return backupId === undefined || Number.isNaN(begunAt.getTime()) ? null : { backupId, begunAt };
}

/** The id at the end of a prefix. */
export const idOfPrefix = (prefix: string): string => prefix.slice(prefix.lastIndexOf("_") + 1);

/** Versions of master keys: without `_` and `-`, so that no other name of a backup looks like one of a key. */
export const keyVersionPattern = /^[A-Za-z0-9][A-Za-z0-9.]{0,31}$/;

/** The prefix in the name of any object of a backup, or null when the name is none. */
export function prefixOf(name: string): string | null {
  const prefix = name.replace(/(?:-\d{5,15}|_metadata|_sha256file|_key_[A-Za-z0-9][A-Za-z0-9.]{0,31})$/, "");
  return prefix !== name && prefixPattern.test(prefix) ? prefix : null;
}

/** Names, descriptions, and keys and values of metadata, in characters (code points). */
export const textCharactersMax = 255;
/** Sizes in GiB and numbers of objects: what a column of the catalogue holds. */
export const columnMax = 2 ** 31 - 1;

/** Smaller blocks would make the hash list a notable part of the volume. */
export const blockBytesMin = 512;
/** Windows are held in memory whole. */
export const objectBytesMax = 256 * 1024 * 1024;
