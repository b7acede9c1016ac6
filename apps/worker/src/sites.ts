import { setTimeout as sleep } from "node:timers/promises";
import type { Config, Logger } from "@tephra/control";
import { backendSettings, levelOf, type RepositoryConfig, repositorySettings } from "@tephra/control/process";
import { encoderNeeds, needToRead, needToWrite, type PlaceCard } from "@tephra/control/work";
import {
  NotReadyYetError,
  openRepository,
  openVolumeBackend,
  type Repository,
  requireEncoder,
  type VolumeBackend,
} from "@tephra/engine";

/** The repository at the configured place is not the one that was there when this worker first opened it. */
export class RepositoryReplacedError extends Error {
  readonly code = "repository-replaced";
  readonly retryable = false;
  constructor(name: string, ids: { expected: string; found: string }) {
    super(`Repository ${name} is another one than before: identity ${ids.found}, expected ${ids.expected}`);
    this.name = "RepositoryReplacedError";
  }
}

/** A name in a task is not in this worker's configuration, or cannot be reached at the moment. */
export class SiteUnreachableError extends Error {
  readonly code = "site-unreachable";
  readonly retryable = true;
  constructor(name: string, options?: ErrorOptions) {
    super(`${name} cannot be reached from this worker`, options);
    this.name = "SiteUnreachableError";
  }
}

/** Calls at the place did not return, and it has not responded since: tasks that need it are for other workers. */
export class PlaceHangsError extends Error {
  readonly code = "place-hangs";
  readonly retryable = true;
  constructor(name: string, why: string) {
    super(`${name} hangs: ${why}`);
    this.name = "PlaceHangsError";
  }
}

/** This worker's capabilities, and why it lacks the others. Of a service for which tasks wait, both. */
export interface Reach {
  reaches: string[];
  unreachable: Record<string, string>;
  /** `backend:NAME` → free bytes on it. */
  freeBytes: Record<string, number>;
  /** Of each place that was reached. */
  places: Record<string, PlaceCard>;
}

/** Places: the configured repositories and volume backends, by name. */
export interface Places {
  /** For one claim: the repository's identity is read and compared first. */
  repository(name: string): Promise<Repository>;
  backend(name: string): Promise<VolumeBackend>;
}

/** How long an object store that accepted a write is assumed to accept more. */
const writableMs = 60_000;

/** The configured repositories and volume backends, opened on first use, and the encoders that they require. */
export interface Sites extends Places, AsyncDisposable {
  /** Probes every place again. */
  probe(): Promise<Reach>;
  /** Whether the last probe of a place ended in time, as far as is known. */
  answers(place: string): boolean;
  /** Whether a probe is still running. */
  isProbing(): boolean;
  /**
   * A call at `places` did not return. They are unreachable from now on until the caller has come to rest (`settled`) and a probe succeeds,
   * though not before others had the time to take over.
   */
  hang(places: readonly string[], why: string, settled: Promise<unknown>): void;
}

/** A place that does not respond to a probe within this time is unreachable. The probe itself goes on, alone. */
const probeWithinMs = 10_000;

async function checkEncoder(repository: RepositoryConfig): Promise<void> {
  const { compression, zlib_encoder: zlibEncoder } = repository;
  requireEncoder({ compression, level: levelOf(repository), zlibEncoder });
}

interface Probe {
  begunAt: number;
  answer: Promise<void>;
}

/** @throws the probe's error, or that it has not ended in time: then no other one is started before it has */
async function answerWithin(probes: Map<string, Probe>, name: string, begin: () => Promise<unknown>): Promise<void> {
  let probe = probes.get(name);
  if (!probe) {
    probe = { begunAt: performance.now(), answer: begin().then(() => {}) };
    const end = (): void => void probes.delete(name);
    probe.answer.then(end, end);
    probes.set(name, probe);
  }
  const lasts = performance.now() - probe.begunAt;
  const late = sleep(Math.max(0, probeWithinMs - lasts), "late" as const, { ref: false });
  if ((await Promise.race([probe.answer, late])) !== "late") return;
  throw new Error(`It does not answer: a probe has lasted ${Math.round((performance.now() - probe.begunAt) / 1000)} s`);
}

/** `installation`: what marks as its own all that this installation makes in other services. */
export function openSites(config: Config, log: Logger, installation: () => Promise<string>): Sites {
  const placed = new Map(
    config.volume_backends.map((settings) => [settings.name, backendSettings(config, settings, installation)]),
  );
  const repositories = new Map<string, { repository: Repository; id: string }>();
  const backends = new Map<string, VolumeBackend>();
  const hanging = new Map<string, { why: string; calls: number; until: number }>();
  const probes = new Map<string, Probe>();
  const late = new Set<string>();
  const encoded = new Map(config.repositories.flatMap((r) => encoderNeeds(r.zlib_encoder).map((need) => [need, r])));

  /** Why a place hangs; null when it does not, as far as is known. */
  const hangs = (place: string): string | null => {
    const found = hanging.get(place);
    if (found && found.calls === 0 && performance.now() >= found.until) hanging.delete(place);
    return hanging.get(place)?.why ?? null;
  };
  const refuseHanging = (place: string): void => {
    const why = hangs(place);
    if (why !== null) throw new PlaceHangsError(place, why);
  };

  const openNamed = async (name: string): Promise<Repository> => {
    const known = repositories.get(name);
    if (known) {
      const { id } = await known.repository.identity();
      if (id !== known.id) throw new RepositoryReplacedError(name, { expected: known.id, found: id });
      return known.repository;
    }
    const settings = config.repositories.find((r) => r.name === name);
    if (!settings) throw new SiteUnreachableError(`repository:${name}`);
    const repository = await openRepository(settings.url, repositorySettings(settings));
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
  /** An object store is tested only now and then: each time costs a request that is refused. */
  const writable = new Map<string, number>();
  const seen = new Map<string, Omit<PlaceCard, "ms">>();
  const keysSeen = new Map<string, { keys: readonly string[]; until: number }>();
  /** Empty where they cannot be read any more; undefined where nothing is encrypted. A program that hands them out is asked now and then only. */
  const keysOf = async (name: string, { encryption }: Repository): Promise<readonly string[] | undefined> => {
    const known = keysSeen.get(name);
    if (encryption === undefined || (known && performance.now() < known.until)) return known?.keys;
    const keys = await encryption.keyVersions().catch(() => []);
    keysSeen.set(name, { keys, until: performance.now() + writableMs });
    return keys;
  };
  const checkWritable = async (name: string): Promise<void> => {
    const repository = await openNamed(name);
    if (repository.storage === "objects" && performance.now() < (writable.get(name) ?? 0)) return;
    await repository.checkWritable();
    const free_bytes = await repository.freeBytes().catch(() => null);
    const keys = await keysOf(name, repository);
    seen.set(name, { free_bytes, ...(keys && { keys }) });
    if (!writable.has(name)) for (const remark of await repository.remarks()) log.warn({ repository: name }, remark);
    writable.set(name, performance.now() + writableMs);
  };
  const openBackend = async (name: string): Promise<VolumeBackend> => {
    const known = backends.get(name);
    if (known) return known;
    const settings = placed.get(name);
    if (!settings) throw new SiteUnreachableError(`backend:${name}`);
    const backend = await openVolumeBackend(settings);
    backends.set(name, backend);
    return backend;
  };

  return {
    async probe() {
      const reach: Reach = { reaches: [], unreachable: {}, freeBytes: {}, places: {} };
      const look = async (
        name: string,
        open: () => Promise<unknown>,
        place = name,
        found: () => Omit<PlaceCard, "ms"> = () => ({}),
      ): Promise<void> => {
        try {
          refuseHanging(place);
          const begunAt = performance.now();
          await answerWithin(probes, name, open).finally(() => {
            if (probes.has(name)) late.add(place);
            else late.delete(place);
          });
          reach.places[name] = { ms: Math.round(performance.now() - begunAt), ...found() };
          reach.reaches.push(name);
        } catch (error) {
          // Its tasks wait by themselves, where others would fail for want of a worker.
          if (error instanceof NotReadyYetError) reach.reaches.push(name);
          reach.unreachable[name] = (error as Error).message;
        }
      };
      // In parallel, since a place that is down responds only after a while.
      await Promise.all([
        ...config.repositories.map(async ({ name }) => {
          const [reading, writing] = [needToRead(name), needToWrite(name)];
          await look(reading, () => openNamed(name), writing);
          const unread = reach.unreachable[reading];
          if (unread === undefined)
            await look(
              writing,
              () => checkWritable(name),
              writing,
              () => seen.get(name) ?? {},
            );
          else reach.unreachable[writing] = unread;
        }),
        ...[...placed].map(([name, settings]) => {
          const place = `backend:${name}`;
          const open = async (): Promise<void> => {
            reach.freeBytes[place] = await (await openVolumeBackend(settings)).freeBytes();
          };
          return look(place, open, place, () => ({ free_bytes: reach.freeBytes[place] ?? null }));
        }),
        ...[...encoded].map(([need, repository]) => look(need, () => checkEncoder(repository))),
      ]);
      reach.reaches.sort();
      return reach;
    },
    async repository(name) {
      refuseHanging(`repository:${name}`);
      return openNamed(name);
    },
    async backend(name) {
      refuseHanging(`backend:${name}`);
      return openBackend(name);
    },
    answers: (place) => !late.has(place),
    isProbing: () => probes.size > 0,
    hang(places, why, settled) {
      for (const place of places) {
        const found = hanging.get(place) ?? { why, calls: 0, until: 0 };
        found.calls += 1;
        found.until = performance.now() + config.worker.lease_ms;
        hanging.set(place, found);
        const end = (): void => {
          found.calls -= 1;
        };
        settled.then(end, end);
      }
    },
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
