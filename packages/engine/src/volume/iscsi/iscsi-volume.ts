import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { errnoOf, InvalidVolumeUrlError, VolumeStorageError } from "../../errors.ts";
import type { PathTarget } from "../file/file-target.ts";
import { NbdSource, openInPlace } from "../nbd/nbd-volume.ts";
import { decoded } from "../percent-encoding.ts";
import { type NodeToServe, type ServedNode, secretId, serveNode } from "../qemu/qemu-nbd.ts";
import type { VolumeSource } from "../volume.ts";

/*
 * A LUN, by libiscsi in qemu-nbd (Debian's qemu-block-extra): no initiator of the kernel, no root. One portal; where there are several
 * paths, the kernel's multipath device is the volume.
 */

const portDefault = 3260;
/** https://www.rfc-editor.org/rfc/rfc7143#section-4.2.7.2 */
const nameBytesMax = 223;
/** SAM's flat addressing, which QEMU's driver uses. */
export const lunMax = 16_383;
/** A CHAP secret has 12 to 16 bytes in most targets, never more than 255. */
const passwordBytesMax = 255;

interface IscsiLun {
  readonly portal: string;
  readonly target: string;
  readonly lun: number;
  /** What the target knows this client by. Null: QEMU's. */
  readonly initiator: string | null;
}

interface NamedLun extends IscsiLun {
  readonly user: string | null;
  /** Where the CHAP secret of `user` is. */
  readonly passwordFile: string | null;
}

/** For CHAP. */
export interface IscsiLogin {
  user: string;
  password: string;
}

const form = "iscsi://[USER@]HOST[:PORT]/IQN/LUN[?password-file=PATH&initiator=IQN]";

/** @throws InvalidVolumeUrlError, which never repeats a URL that may contain a password */
export function parseIscsiUrl(name: string): NamedLun {
  const url = URL.parse(name);
  if (url === null || url.protocol !== "iscsi:")
    throw new InvalidVolumeUrlError(`This is not a URL of the form ${form}.`);
  const user = decoded(url.username);
  if (url.password !== "" || user === null || user.includes("%")) {
    throw new InvalidVolumeUrlError(`A password does not belong into a URL, where others can read it: ${form}`);
  }
  const wrong = (why: string): InvalidVolumeUrlError => new InvalidVolumeUrlError(`${name} ${why}: ${form}`);
  if (url.hash !== "") throw wrong("has parts that are not used");
  const settings = [...url.searchParams.keys()];
  const known = ["password-file", "initiator"];
  if (settings.some((key) => !known.includes(key)) || new Set(settings).size !== settings.length)
    throw wrong("has settings that are unknown or given twice");
  if (url.hostname === "") throw wrong("names no host");
  const [, target = "", lun = ""] = /^\/([^/]+)\/([0-9]{1,5})$/.exec(decoded(url.pathname) ?? "") ?? [];
  if (!isTargetName(target) || Number(lun) > lunMax) throw wrong("names no target and LUN");
  const [passwordFile, initiator] = [url.searchParams.get("password-file"), url.searchParams.get("initiator")];
  if (passwordFile === "" || (passwordFile === null) !== (user === ""))
    throw wrong("needs a user and a password file, or neither");
  if (initiator !== null && !isTargetName(initiator)) throw wrong("has no usable name of an initiator");
  return {
    portal: `${url.hostname}:${url.port === "" ? portDefault : url.port}`,
    target,
    lun: Number(lun),
    user: user === "" ? null : user,
    passwordFile,
    initiator,
  };
}

export const isTargetName = (text: string): boolean =>
  /^(iqn|eui|naa)\.[\x21-\x7e]+$/.test(text) && text.length <= nameBytesMax;

/**
 * Opens a LUN to read.
 *
 * @throws InvalidVolumeUrlError; VolumeStorageError when the target cannot be reached, denies access or has no such LUN
 */
export async function openIscsiSource(name: string): Promise<VolumeSource> {
  const { served, shown } = await serveNamed(name, { writable: false });
  const source = new NbdSource(served.client, async () => `${shown}:${served.client.sizeBytes}`);
  return Object.assign(source, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
}

/**
 * Opens a LUN to overwrite.
 *
 * @throws as openIscsiSource; VolumeConflictError when it is read-only or too short
 */
export async function openIscsiTarget(name: string, sizeBytes: number): Promise<PathTarget> {
  const { served, shown } = await serveNamed(name, { writable: true });
  return openInPlace(served.client, { name: shown, sizeBytes, server: served });
}

interface ServedLun {
  served: ServedNode;
  /** What it is called in messages. */
  shown: string;
}

async function serveNamed(name: string, options: { writable: boolean }): Promise<ServedLun> {
  const { user, passwordFile, ...lun } = parseIscsiUrl(name);
  const login = user === null || passwordFile === null ? null : { user, password: await readPassword(passwordFile) };
  return serveLun({ ...lun, login }, options);
}

/**
 * Serves a LUN by libiscsi in qemu-nbd. `files`: what else qemu-nbd is to have open.
 *
 * @throws VolumeStorageError as openIscsiSource
 */
export async function serveLun(
  lun: IscsiLun & { login: IscsiLogin | null },
  { writable, files = [] }: { writable: boolean; files?: NodeToServe["files"] },
): Promise<ServedLun> {
  const { login } = lun;
  const shown = `iscsi://${lun.portal}/${lun.target}/${lun.lun}`;
  const file = {
    driver: "iscsi",
    transport: "tcp",
    portal: lun.portal,
    target: lun.target,
    lun: lun.lun,
    ...(lun.initiator === null ? {} : { "initiator-name": lun.initiator }),
    ...(login === null ? {} : { user: login.user, "password-secret": secretId }),
  };
  const what = {
    shown,
    node: { driver: "raw", file },
    files,
    ...(login === null ? {} : { secret: { text: login.password, format: "raw" as const } }),
    mayPass: (words: string) => !lasting.test(words),
  };
  const served = await serveNode(what, { writable });
  if (served.client.sizeBytes > 0) return { served, shown };
  await served[Symbol.asyncDispose]();
  throw new VolumeStorageError(`${shown} is not a disk: it has no bytes.`, { retryable: false });
}

/** What a target says for good: the words of libiscsi for its answers to a login, and of QEMU for a LUN that is no disk. */
const lasting =
  /Authentication failure|Authorization failure|Target not found|Target removed|LOGICAL_UNIT_NOT_SUPPORTED|not disk|Unknown driver/;

/** Whether it can be a CHAP secret. */
export const isPassword = (text: string): boolean =>
  text !== "" && text.length <= passwordBytesMax && !/[\r\n\0]/.test(text);

/** @throws VolumeStorageError */
async function readPassword(path: string): Promise<string> {
  const refuse = (why: string): VolumeStorageError =>
    new VolumeStorageError(`The password file ${path} ${why}.`, { retryable: false });
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch((error: unknown) => {
    throw refuse(`cannot be read (${errnoOf(error)})`);
  });
  try {
    const status = await file.stat();
    if (!status.isFile()) throw refuse("is not a regular file");
    if ((status.mode & 0o007) !== 0) throw refuse("can be read by every user of this machine (chmod o-rwx)");
    const { bytesRead, buffer } = await file.read(Buffer.alloc(passwordBytesMax + 2), 0, null, 0);
    const text = buffer.toString("utf8", 0, bytesRead).replace(/\r?\n$/, "");
    if (!isPassword(text)) throw refuse("is not one line with a password");
    return text;
  } finally {
    await file.close();
  }
}
