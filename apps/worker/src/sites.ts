import {
  type Config,
  encoderNeeds,
  type Logger,
  levelOf,
  needToRead,
  needToWrite,
  type RepositoryConfig,
} from "@tephra/control";
import { type FileBackend, openFileBackend, openRepository, type Repository, requireEncoder } from "@tephra/engine";

/** The repository at the configured place is not the one that was there when this worker looked first. */
export class RepositoryReplacedError extends Error {
  readonly code = "repository-replaced";
  readonly retryable = false;
  constructor(name: string, ids: { expected: string; found: string }) {
    super(`Repository ${name} is another one than before: identity ${ids.found}, expected ${ids.expected}`);
    this.name = "RepositoryReplacedError";
  }
}

/** A name that a task carries is not in this worker's configuration, or cannot be reached just now. */
export class SiteUnreachableError extends Error {
  readonly code = "site-unreachable";
  readonly retryable = true;
  constructor(name: string, options?: ErrorOptions) {
    super(`${name} cannot be reached from this worker`, options);
    this.name = "SiteUnreachableError";
  }
}

/** What this worker reaches, and why it does not reach the rest. */
export interface Reach {
  reaches: string[];
  unreachable: Record<string, string>;
  /** `backend:NAME` → bytes that are free there. */
  freeBytes: Record<string, number>;
}

/** The repositories and volume backends of the configuration, opened when first reached, and the encoders that they ask for. */
export interface Sites extends AsyncDisposable {
  /** Looks at every place again. */
  probe(): Promise<Reach>;
  /** For one claim: the repository's identity is read and compared first. */
  repository(name: string): Promise<Repository>;
  backend(name: string): Promise<FileBackend>;
}

/** How long a service that takes objects is believed to take more. */
const writableMs = 60_000;

async function checkEncoder(repository: RepositoryConfig): Promise<void> {
  const { compression, zlib_encoder: zlibEncoder } = repository;
  requireEncoder({ compression, level: levelOf(repository), zlibEncoder });
}

export function openSites(config: Config, log: Logger): Sites {
  const repositories = new Map<string, { repository: Repository; id: string }>();
  const backends = new Map<string, FileBackend>();
  const encoded = new Map(config.repositories.flatMap((r) => encoderNeeds(r.zlib_encoder).map((need) => [need, r])));

  const openNamed = async (name: string): Promise<Repository> => {
    const known = repositories.get(name);
    if (known) {
      const { id } = await known.repository.identity();
      if (id !== known.id) throw new RepositoryReplacedError(name, { expected: known.id, found: id });
      return known.repository;
    }
    const settings = config.repositories.find((r) => r.name === name);
    if (!settings) throw new SiteUnreachableError(`repository:${name}`);
    const { url, zone, credentials, access_key: accessKey, secret_key: secretKey } = settings;
    const { key_file: keyFile, key_command: keyCommand } = settings.encryption ?? {};
    const encryption = settings.encryption && { keyFile, keyCommand };
    const repository = await openRepository(url, {
      zone,
      credentials,
      accessKey,
      secretKey,
      encryption,
      readBack: settings.read_back,
    });
    let id: string;
    try {
      ({ id } = await repository.identity());
    } catch (error) {
      await repository[Symbol.asyncDispose]();
      throw error;
    }
    const raced = repositories.get(name);
    if (raced) {
      await repository[Symbol.asyncDispose]();
      return raced.repository;
    }
    repositories.set(name, { repository, id });
    return repository;
  };
  /** Asked of a service now and then only: each time costs a request that is refused. */
  const writable = new Map<string, number>();
  const checkWritable = async (name: string): Promise<void> => {
    const repository = await openNamed(name);
    const local = repository.driver === "posix" || repository.driver === "nfs";
    if (!local && performance.now() < (writable.get(name) ?? 0)) return;
    await repository.checkWritable();
    if (!writable.has(name)) for (const remark of await repository.remarks()) log.warn({ repository: name }, remark);
    writable.set(name, performance.now() + writableMs);
  };
  const openBackend = async (name: string): Promise<FileBackend> => {
    const known = backends.get(name);
    if (known) return known;
    const settings = config.volume_backends.find((b) => b.name === name);
    if (!settings) throw new SiteUnreachableError(`backend:${name}`);
    const backend = await openFileBackend(settings.path);
    backends.set(name, backend);
    return backend;
  };

  return {
    async probe() {
      const reach: Reach = { reaches: [], unreachable: {}, freeBytes: {} };
      const look = async (name: string, open: () => Promise<unknown>): Promise<void> => {
        try {
          await open();
          reach.reaches.push(name);
        } catch (error) {
          reach.unreachable[name] = (error as Error).message;
        }
      };
      // At the same time, since one that is away answers only after a while.
      await Promise.all([
        ...config.repositories.map(async ({ name }) => {
          const [reading, writing] = [needToRead(name), needToWrite(name)];
          await look(reading, () => openNamed(name));
          const unread = reach.unreachable[reading];
          if (unread === undefined) await look(writing, () => checkWritable(name));
          else reach.unreachable[writing] = unread;
        }),
        ...config.volume_backends.map(({ name, path }) =>
          look(`backend:${name}`, async () => {
            reach.freeBytes[`backend:${name}`] = await (await openFileBackend(path)).freeBytes();
          }),
        ),
        ...[...encoded].map(([need, repository]) => look(need, () => checkEncoder(repository))),
      ]);
      reach.reaches.sort();
      return reach;
    },
    repository: openNamed,
    backend: openBackend,
    async [Symbol.asyncDispose]() {
      for (const { repository } of repositories.values()) {
        try {
          await repository[Symbol.asyncDispose]();
        } catch (error) {
          log.warn({ err: error }, "repository did not close");
        }
      }
    },
  };
}
