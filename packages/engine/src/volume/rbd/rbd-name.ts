import { InvalidVolumeUrlError } from "../../errors.ts";
import { decoded } from "../percent-encoding.ts";
import type { RbdAccess } from "./rbd-command.ts";

export interface RbdImage extends RbdAccess {
  readonly image: string;
  readonly snapshot: string | null;
}

const form = "rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][?conf=PATH&user=NAME&keyring=PATH]";
const settingsKnown = ["conf", "user", "keyring"];

/** Names are percent-encoded where they contain `/`, `@`, `?` or `%`. @throws InvalidVolumeUrlError */
export function parseRbdName(name: string): RbdImage {
  const wrong = (why: string): InvalidVolumeUrlError => new InvalidVolumeUrlError(`${name} ${why}: ${form}`);
  const [, place = "", query = ""] = /^rbd:([^?#]*)(?:\?([^#]*))?$/s.exec(name) ?? [];
  const [, names = "", snapshot] = /^([^@]*)(?:@([^@/]+))?$/.exec(place) ?? [];
  const parts = names.split("/").map(decoded);
  if (parts.length < 2 || parts.length > 3 || parts.includes("") || parts.includes(null)) throw wrong("names no image");
  const snapshotName = snapshot === undefined ? null : decoded(snapshot);
  if (snapshot !== undefined && snapshotName === null) throw wrong("names no snapshot");
  const settings = new URLSearchParams(query);
  const keys = [...settings.keys()];
  if (keys.some((key) => !settingsKnown.includes(key)) || new Set(keys).size !== keys.length)
    throw wrong("has settings that are unknown or given twice");
  if ([...settings.values()].includes("")) throw wrong("has an empty setting");
  const user = settings.get("user");
  if (user !== null && !/^[A-Za-z0-9._-]{1,255}$/.test(user)) throw wrong("has no usable user");
  return {
    pool: parts[0] as string,
    namespace: parts.length === 3 ? (parts[1] as string) : null,
    image: parts.at(-1) as string,
    snapshot: snapshotName,
    conf: settings.get("conf"),
    user,
    keyring: settings.get("keyring"),
  };
}

/** What an image is called in messages, without the settings. */
export function shownAs({ pool, namespace, image, snapshot }: RbdImage): string {
  return `rbd:${[pool, ...(namespace === null ? [] : [namespace]), image].join("/")}${snapshot === null ? "" : `@${snapshot}`}`;
}
