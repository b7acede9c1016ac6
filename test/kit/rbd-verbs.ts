// rbd-verbs.ts SETTINGS VERB FILE: runs one verb of the rbd backend, which may change nothing any more once there is such a file.
import { existsSync } from "node:fs";
import { openVolumeBackend, type RunContext, type VolumeBackendSettings } from "@tephra/engine";

const [settings = "", verb = "", late = ""] = process.argv.slice(2);
const fence = (): void => {
  if (existsSync(late)) throw new Error("The run has come too late.");
};
const free: RunContext = { signal: new AbortController().signal, fence, onProgress: () => {} };
const id = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`;
const backend = await openVolumeBackend(JSON.parse(settings) as VolumeBackendSettings);

const verbs: Record<string, () => Promise<unknown>> = {
  create: () => backend.create(id(2), 262_144),
  clone: () => backend.clone({ volumeId: id(1) }, id(2), 524_288, free),
  "clone-snapshot": () => backend.clone({ snapshotId: id(5) }, id(2), 262_144, free),
  freeze: () => backend.freeze(id(1), id(6), free),
  extend: () => backend.extend(id(1), 524_288),
  thaw: () => backend.thaw(id(5)),
  remove: () => backend.remove(id(1)),
  publish: () => backend.publishRestore(id(1), `${id(2)}-0`, { fresh: false }, free),
  restore: async () => {
    await backend.beginRestore(id(1), `${id(2)}-0`, { sizeBytes: 131_072, keepTail: false }, free);
    await backend.publishRestore(id(1), `${id(2)}-0`, { fresh: false }, free);
  },
};
await verbs[verb]?.();
