// file-verbs.ts HOME VERB: runs one verb of the file backend, or of a posix repository, in folders below HOME.
import { join } from "node:path";
import { openHypervisor, openRepository, openVolumeBackend, type RunContext } from "@tephra/engine";

const [home = "", verb = ""] = process.argv.slice(2);
const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const id = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`;
const places = { roots: [join(home, "users")] };
const backend = await openVolumeBackend({ driver: "file", path: join(home, "volumes") });
const run = { operationId: id(9), claim: 0 };

const verbs: Record<string, () => Promise<unknown>> = {
  create: () => backend.create(id(2), 4096),
  clone: () => backend.clone({ volumeId: id(1) }, id(2), 8192, free),
  snapshot: () => backend.freeze(id(1), id(2), free),
  probe: () => backend.canFreezeCheaply(),
  import: () => backend.importFile(join(home, "users/image"), id(2), places, free),
  export: () => backend.exportFile(id(1), join(home, "users/out"), { places, run, overwrite: false }, free),
  restore: async () => {
    await backend.beginRestore(id(1), `${id(2)}-0`, { sizeBytes: 100, keepTail: true }, free);
    await backend.publishRestore(id(1), `${id(2)}-0`, { fresh: true }, free);
  },
  together: async () => {
    await using machine = openHypervisor({ driver: "record", powerState: "SHUTOFF" });
    const disks = [1, 3].map((n) => ({ ...backend.snapshotPaths(id(n), id(n + 4)), device: `vd${n}` }));
    const options = { freezeLimitMs: 1000, requireConsistency: false, operationId: id(9) };
    await machine.snapshotTogether(disks, options, free);
  },
  put: async () => {
    await using repository = await openRepository(`posix:${join(home, "repository")}`);
    await repository.ensureContainer(".tephra");
    await repository.putIfAbsent({ container: ".tephra", name: "object" }, Buffer.from("bytes"), free);
  },
};
await verbs[verb]?.();
