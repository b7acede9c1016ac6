import type { Config, Logger } from "@tephra/control";
import { backendSettings, repositorySettings } from "@tephra/control/process";
import { openRepository, openVolumeBackend, type Repository, type VolumeBackend } from "@tephra/engine";

/** A place that does not answer within this time is not offered. */
const probeMs = 10_000;

/** The configured volume backends and repositories, opened on first use. */
export interface Places {
  /** @throws when it is not configured, or cannot be opened */
  backend(name: string): Promise<VolumeBackend>;
  /** Reads its identity each time, so that another one at its place is noticed. @throws as `backend` */
  repository(name: string): Promise<Repository>;
  /** The names of those that answer. */
  probe(): Promise<{ backends: string[]; repositories: string[] }>;
}

export function openPlaces(config: Config, log: Logger): Places {
  const backends = new Map<string, VolumeBackend>();
  const repositories = new Map<string, { repository: Repository; id: string }>();
  /** One probe of a place at a time: one that hangs is not asked again. */
  const probing = new Map<string, Promise<boolean>>();
  const told = new Map<string, string>();

  const openBackend = async (name: string): Promise<VolumeBackend> => {
    const known = backends.get(name);
    if (known) return known;
    const settings = config.volume_backends.find((backend) => backend.name === name);
    if (settings === undefined) throw new Error(`Volume backend ${name} is not configured here.`);
    const backend = await openVolumeBackend(backendSettings(config, settings));
    backends.set(name, backend);
    return backend;
  };
  const openNamed = async (name: string): Promise<Repository> => {
    const known = repositories.get(name);
    if (known) {
      const { id } = await known.repository.identity();
      if (id === known.id) return known.repository;
      throw new Error(`Repository ${name} is another one than before: identity ${id}, expected ${known.id}.`);
    }
    const settings = config.repositories.find((repository) => repository.name === name);
    if (settings === undefined) throw new Error(`Repository ${name} is not configured here.`);
    await using stack = new AsyncDisposableStack();
    const repository = stack.use(await openRepository(settings.url, repositorySettings(settings)));
    const { id } = await repository.identity();
    const raced = repositories.get(name);
    if (raced) return raced.repository;
    repositories.set(name, { repository, id });
    stack.move();
    return repository;
  };
  const answers = async (place: string, ask: () => Promise<unknown>): Promise<boolean> => {
    try {
      await ask();
      told.delete(place);
      return true;
    } catch (error) {
      const why = (error as Error).message;
      if (told.get(place) !== why) log.warn({ name: place, why }, "not reached from here");
      told.set(place, why);
      return false;
    }
  };
  const answersInTime = async (place: string, ask: () => Promise<unknown>): Promise<boolean> => {
    const begun = probing.get(place) ?? answers(place, ask).finally(() => probing.delete(place));
    probing.set(place, begun);
    const limit = Promise.withResolvers<false>();
    const timer = setTimeout(() => limit.resolve(false), probeMs);
    const answered = await Promise.race([begun, limit.promise]);
    clearTimeout(timer);
    return answered;
  };
  const thoseThatAnswer = async (
    kind: string,
    named: readonly { name: string }[],
    ask: (name: string) => Promise<unknown>,
  ): Promise<string[]> => {
    const names = named.map(({ name }) => name);
    const found = await Promise.all(names.map((name) => answersInTime(`${kind}:${name}`, () => ask(name))));
    return names.filter((_, at) => found[at]);
  };
  return {
    backend: openBackend,
    repository: openNamed,
    async probe() {
      const [backendNames, repositoryNames] = await Promise.all([
        thoseThatAnswer("backend", config.volume_backends, async (name) => (await openBackend(name)).freeBytes()),
        thoseThatAnswer("repository", config.repositories, openNamed),
      ]);
      return { backends: backendNames, repositories: repositoryNames };
    },
  };
}
