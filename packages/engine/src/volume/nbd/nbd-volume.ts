import { VolumeConflictError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import type { PathTarget } from "../file/file-target.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import type { NbdClient } from "./nbd-client.ts";
import type { NbdExport } from "./nbd-protocol.ts";

/** An export read by request. */
export class NbdSource implements VolumeSource {
  readonly #client: NbdClient;
  readonly #fingerprint: () => Promise<string>;

  /** Takes ownership of the client. `fingerprint`: of whatever the server reads, if that can be known. */
  constructor(client: NbdClient, fingerprint?: () => Promise<string>) {
    this.#client = client;
    this.#fingerprint = fingerprint ?? (async () => `nbd:${client.sizeBytes}`);
  }

  get sizeBytes(): number {
    return this.#client.sizeBytes;
  }

  get nbdExport(): NbdExport | undefined {
    return this.#client.export;
  }

  read(into: Uint8Array, offset: number): Promise<void> {
    return this.#client.read(into, offset);
  }

  async *dataExtents(range: Extent): AsyncGenerator<Extent> {
    const end = range.offset + range.length;
    if (!this.#client.tellsZeros) {
      yield range;
      return;
    }
    /** Where the data begins that is being looked at; null in zeros. */
    let from: number | null = null;
    for (let offset = range.offset; offset < end; ) {
      for (const { length, zero } of await this.#client.status(offset, end - offset)) {
        if (zero && from !== null) yield { offset: from, length: offset - from };
        from = zero ? null : (from ?? offset);
        offset += length;
      }
    }
    if (from !== null) yield { offset: from, length: end - from };
  }

  fingerprint(): Promise<string> {
    return this.#fingerprint();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]();
  }
}

/** An export written in place. */
export class NbdTarget implements VolumeTarget {
  readonly isNew: boolean;
  readonly #client: NbdClient;

  /** Takes ownership of the client. `isNew`: every byte of the export is known to be zero. */
  constructor(client: NbdClient, { isNew }: { isNew: boolean }) {
    this.#client = client;
    this.isNew = isNew;
  }

  get sizeBytes(): number {
    return this.#client.sizeBytes;
  }

  get nbdExport(): NbdExport | undefined {
    return this.#client.export;
  }

  write(data: Uint8Array, offset: number): Promise<void> {
    return this.#client.write(data, offset);
  }

  flush(): Promise<void> {
    return this.#client.flush();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]();
  }
}

/**
 * A target that is overwritten. Takes ownership of the client, and of the `server` that ends with it, if any, also when it throws.
 *
 * @throws VolumeConflictError when it cannot be written or has fewer than `sizeBytes`
 */
export async function openInPlace(
  client: NbdClient,
  { name, sizeBytes, server = client }: { name: string; sizeBytes: number; server?: AsyncDisposable },
): Promise<PathTarget> {
  const why = client.isReadOnly
    ? "is read-only"
    : client.sizeBytes < sizeBytes
      ? `has ${client.sizeBytes} bytes, too few for ${sizeBytes}`
      : null;
  if (why !== null) {
    await server[Symbol.asyncDispose]();
    throw new VolumeConflictError(`${name} ${why}.`);
  }
  const target = new NbdTarget(client, { isNew: false });
  return { target, publish: () => target.flush(), [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}
