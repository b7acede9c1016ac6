import type { Config, Logger } from "@tephra/control";
import { openVolumeBackend, type VolumeBackend } from "@tephra/engine";

/** A backend that does not answer within this time is not offered. */
const probeMs = 10_000;

/** The configured volume backends, opened on first use. */
export interface Backends {
  /** @throws when it is not configured, or cannot be opened */
  open(name: string): Promise<VolumeBackend>;
  /** The names of those that answer. */
  probe(): Promise<string[]>;
}

export function openBackends(config: Config, log: Logger): Backends {
  const opened = new Map<string, VolumeBackend>();
  /** One probe of a backend at a time: one that hangs is not asked again. */
  const probing = new Map<string, Promise<boolean>>();
  const told = new Map<string, string>();
  const open = async (name: string): Promise<VolumeBackend> => {
    const known = opened.get(name);
    if (known) return known;
    const settings = config.volume_backends.find((backend) => backend.name === name);
    if (settings === undefined) throw new Error(`Volume backend ${name} is not configured here.`);
    const backend = await openVolumeBackend(settings);
    opened.set(name, backend);
    return backend;
  };
  const answers = async (name: string): Promise<boolean> => {
    try {
      await (await open(name)).freeBytes();
      told.delete(name);
      return true;
    } catch (error) {
      const why = (error as Error).message;
      if (told.get(name) !== why) log.warn({ name: `backend:${name}`, why }, "not reached from here");
      told.set(name, why);
      return false;
    }
  };
  return {
    open,
    async probe() {
      const names = config.volume_backends.map(({ name }) => name);
      const found = await Promise.all(
        names.map(async (name) => {
          const begun = probing.get(name) ?? answers(name).finally(() => probing.delete(name));
          probing.set(name, begun);
          const limit = Promise.withResolvers<false>();
          const timer = setTimeout(() => limit.resolve(false), probeMs);
          const answered = await Promise.race([begun, limit.promise]);
          clearTimeout(timer);
          return answered;
        }),
      );
      return names.filter((_, at) => found[at]);
    },
  };
}
