import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { promisify } from "node:util";
import { RepositoryConfigError, RepositoryUnavailableError } from "../errors.ts";
import { isShare, mountAt } from "../mounts.ts";
import type { WriteContext } from "../run/run-context.ts";
import type { OnPassedOver } from "./passed-over.ts";
import { PosixRepository } from "./posix.ts";
import { makeFolders } from "./posix-files.ts";
import type { Leftover, ObjectDraft, ObjectKey } from "./repository.ts";

export interface NfsSettings {
  /** `server:/export`. */
  share: string;
  /** The folder in which shares are mounted. */
  mountBase: string;
  /** Options for `mount -o`. */
  options: string | null;
  /** Whether written data is read back from the server before the file gets its name. */
  readBack: boolean;
}

const execute = promisify(execFile);
const mountTimeoutMs = 60_000;

/** The mount point of a share, named as in Cinder's driver. */
export function mountPointOf(settings: Pick<NfsSettings, "share" | "mountBase">): string {
  return join(settings.mountBase, createHash("md5").update(settings.share).digest("hex"));
}

/**
 * A posix repository on a share. The share is mounted when the identity is requested, and written only while mounted, so that data under
 * the mount point is never mistaken for the share.
 */
export class NfsRepository extends PosixRepository {
  override readonly driver = "nfs";
  override readonly service = "cinder.backup.drivers.nfs.NFSBackupDriver";
  readonly #settings: NfsSettings;
  readonly #mountPoint: string;

  constructor(settings: NfsSettings) {
    const mountPoint = mountPointOf(settings);
    if (!/^(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9a-fA-F:.]+\]):\/[^\s\0]*$/.test(settings.share)) {
      const shown = JSON.stringify(settings.share.slice(0, 300));
      throw new RepositoryConfigError(`Not a share: ${shown}. Expected nfs:server:/export.`);
    }
    if (settings.options !== null && !/^[A-Za-z0-9_=.,:/-]+$/.test(settings.options)) {
      throw new RepositoryConfigError(`The repository nfs:${settings.share}: options must be those of mount -o.`);
    }
    super(mountPoint, settings);
    this.#settings = settings;
    this.#mountPoint = mountPoint;
  }

  override async identity(): Promise<{ id: string }> {
    await this.#mount();
    return super.identity();
  }

  override async checkWritable(): Promise<void> {
    await this.#checkMounted();
    await super.checkWritable();
  }

  override async freeBytes(): Promise<number> {
    await this.#checkMounted();
    return super.freeBytes();
  }

  override async initialize(): Promise<{ id: string }> {
    await this.#mount();
    return super.initialize();
  }

  /** A search may be the first access to the share. */
  override async *containers(onPassedOver?: OnPassedOver): AsyncGenerator<string> {
    await this.#mount();
    yield* super.containers(onPassedOver);
  }

  override async ensureContainer(container: string): Promise<void> {
    await this.#checkMounted();
    await super.ensureContainer(container);
  }

  override async putIfAbsent(
    key: ObjectKey,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    ctx: WriteContext,
  ): Promise<"stored" | "exists"> {
    await this.#checkMounted();
    return super.putIfAbsent(key, body, ctx);
  }

  override async openDraft(key: ObjectKey, ctx: WriteContext): Promise<ObjectDraft | null> {
    await this.#checkMounted();
    return super.openDraft(key, ctx);
  }

  override async copyIfAbsent(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<"stored" | "exists"> {
    await this.#checkMounted();
    return super.copyIfAbsent(from, to, ctx);
  }

  override async remove(key: ObjectKey): Promise<void> {
    await this.#checkMounted();
    await super.remove(key);
  }

  override async removeLeftover(leftover: Leftover, ctx: WriteContext): Promise<void> {
    await this.#checkMounted();
    await super.removeLeftover(leftover, ctx);
  }

  override async holdsOnly(belongs: (name: string) => boolean): Promise<boolean> {
    await this.#mount();
    return super.holdsOnly(belongs);
  }

  async #mount(): Promise<void> {
    if (await this.#isMounted()) return;
    const { share, options } = this.#settings;
    try {
      await makeFolders(this.#mountPoint);
      const args = ["-t", "nfs", ...(options === null ? [] : ["-o", options]), share, this.#mountPoint];
      await execute("mount", args, { timeout: mountTimeoutMs });
    } catch (cause) {
      // Another process may have mounted it first.
      if (await this.#isMounted()) return;
      const said = String((cause as { stderr?: string }).stderr ?? (cause as Error).message)
        .trim()
        .slice(0, 300);
      throw this.#unavailable(`it cannot be mounted on ${this.#mountPoint}: ${said}`, cause);
    }
    if (!(await this.#isMounted())) throw this.#unavailable("mount has succeeded and nothing is mounted");
  }

  async #checkMounted(): Promise<void> {
    if (!(await this.#isMounted())) throw this.#unavailable(`it is not mounted on ${this.#mountPoint}`);
  }

  async #isMounted(): Promise<boolean> {
    const mount = await mountAt(this.#mountPoint);
    if (mount === undefined) return false;
    if (!isShare(mount, this.#settings.share)) throw this.#unavailable(`${mount.source} is mounted in its place`);
    return true;
  }

  #unavailable(reason: string, cause?: unknown): RepositoryUnavailableError {
    const what = `The repository nfs:${this.#settings.share} is unavailable: ${reason}.`;
    return new RepositoryUnavailableError(what, { cause, retryable: true });
  }
}
