import { InvalidVolumeUrlError, VolumeConflictError } from "../errors.ts";
import { openOperatorSource } from "./file/file-source.ts";
import { openPathTarget, type PathTarget } from "./file/file-target.ts";
import type { NbdAddress } from "./nbd/nbd-protocol.ts";
import { decoded } from "./percent-encoding.ts";
import { type ImageFormat, imageFormats, openImageChain } from "./qemu/image-chain.ts";
import type { VolumeSource } from "./volume.ts";

const nbdPort = 10_809;

interface Server {
  open: (name: string) => Promise<VolumeSource>;
  openTarget: (name: string, sizeBytes: number) => Promise<PathTarget>;
}

const nbd: Server = { open: openNbd, openTarget: openNbdTarget };

/** By scheme: what is read and written through a server, always in place. What only one of them needs is loaded with its first use. */
const servers: ReadonlyMap<string, Server> = new Map([
  ["nbd", nbd],
  ["nbd+unix", nbd],
  [
    "iscsi",
    {
      open: async (name) => (await import("./iscsi/iscsi-volume.ts")).openIscsiSource(name),
      openTarget: async (name, sizeBytes) => (await import("./iscsi/iscsi-volume.ts")).openIscsiTarget(name, sizeBytes),
    },
  ],
  [
    "rbd",
    {
      open: async (name) => (await import("./rbd/rbd-volume.ts")).openRbdSource(name),
      openTarget: async (name, sizeBytes) => (await import("./rbd/rbd-volume.ts")).openRbdTarget(name, sizeBytes),
    },
  ],
]);

/**
 * Opens what an operator names for reading: the path of a file or device, `qcow2:PATH`, `vmdk:PATH`, `vhdx:PATH`, `vdi:PATH`,
 * `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, or what openIscsiSource and openRbdSource take. `backingRoots`: folders where backing files
 * of an image may be, beside its own.
 *
 * @throws InvalidVolumeUrlError, SourceMissingError, PathNotAllowedError, VolumeStorageError
 */
export async function openNamedSource(name: string, backingRoots: readonly string[] = []): Promise<VolumeSource> {
  const [, scheme = "", path = ""] = /^([a-z0-9+]+):(.*)$/s.exec(name) ?? [];
  const served = servers.get(scheme);
  if (served !== undefined) return served.open(name);
  const format = imageFormats.find((known) => known === scheme);
  return format === undefined ? openOperatorSource(name) : openImage(path, format, backingRoots);
}

/**
 * Opens what an operator names for writing at least `sizeBytes`: a file or device, see openPathTarget; `qcow2:PATH[?size=BYTES]`, a new
 * image; or an export of NBD, a LUN of iSCSI or an image of Ceph, written in place.
 *
 * @throws InvalidVolumeUrlError, PathTakenError for an image that exists, VolumeConflictError for one of these that is too short
 */
export async function openNamedTarget(
  name: string,
  sizeBytes: number,
  options: { keepLength?: boolean } = {},
): Promise<PathTarget> {
  const [, scheme = "", path = ""] = /^([a-z0-9+]+):(.*)$/s.exec(name) ?? [];
  const served = servers.get(scheme);
  if (served !== undefined) return served.openTarget(name, sizeBytes);
  if (scheme === "qcow2") return createNamedImage(path, sizeBytes);
  if (imageFormats.some((known) => known === scheme)) {
    throw new InvalidVolumeUrlError(`${name} cannot be written: images of the format ${scheme} can only be read.`);
  }
  return openPathTarget(name, sizeBytes, options);
}

async function createNamedImage(name: string, sizeBytes: number): Promise<PathTarget> {
  const [, path = name, size] = /^(.*)\?size=([0-9]{1,15})$/s.exec(name) ?? [];
  const imageBytes = size === undefined ? sizeBytes : Number(size);
  if (imageBytes < sizeBytes) {
    throw new VolumeConflictError(`An image of ${imageBytes} bytes is too short for ${sizeBytes} bytes.`);
  }
  return (await import("./qemu/new-image.ts")).createImage(path, imageBytes);
}

async function openNbdTarget(name: string, sizeBytes: number): Promise<PathTarget> {
  const { address, exportName } = parseNbdUrl(name);
  const [{ NbdClient }, { openInPlace }] = await loadNbd();
  return openInPlace(await NbdClient.open(address, exportName, name), { name, sizeBytes });
}

async function openImage(path: string, format: ImageFormat, roots: readonly string[]): Promise<VolumeSource> {
  const { serveSource } = await import("./qemu/image-source.ts");
  return serveSource(await openImageChain(path, format, roots));
}

async function openNbd(name: string): Promise<VolumeSource> {
  const { address, exportName } = parseNbdUrl(name);
  const [{ NbdClient }, { NbdSource }] = await loadNbd();
  return new NbdSource(await NbdClient.open(address, exportName, name));
}

const loadNbd = () => Promise.all([import("./nbd/nbd-client.ts"), import("./nbd/nbd-volume.ts")]);

/** https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md */
function parseNbdUrl(name: string): { address: NbdAddress; exportName: string } {
  const url = URL.parse(name);
  if (url === null) throw new InvalidVolumeUrlError(`${name} is not a URL.`);
  const unknown = [...url.searchParams.keys()].filter((key) => key !== "socket");
  if (unknown.length > 0 || url.hash !== "" || url.username !== "") {
    throw new InvalidVolumeUrlError(
      `${name} has parts that are not used: nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT`,
    );
  }
  const exportName = decoded(url.pathname.slice(1));
  if (exportName === null) throw new InvalidVolumeUrlError(`${name} has an export name that cannot be decoded.`);
  const socket = url.searchParams.get("socket");
  if (url.protocol === "nbd+unix:") {
    if (socket === null || socket === "") throw new InvalidVolumeUrlError(`${name} names no socket.`);
    return { address: { path: socket }, exportName };
  }
  if (url.hostname === "" || socket !== null) throw new InvalidVolumeUrlError(`${name} names no host.`);
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  return { address: { host, port: url.port === "" ? nbdPort : Number(url.port) }, exportName };
}
