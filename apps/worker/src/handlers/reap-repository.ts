import { join } from "node:path";
import {
  areBusy,
  condemnPlace,
  documents,
  exportFolders,
  finishReap,
  graceBegan,
  isForgottenFile,
  judgePlace,
  type ReapCounts,
  type ReapInput,
  type ReapResult,
  readContainers,
} from "@tephra/control/work";
import {
  EngineError,
  exportLeftovers,
  findPlaces,
  idsIn,
  isOnlyHere,
  type Leftover,
  type ListedPlace,
  type Repository,
  type RunContext,
} from "@tephra/engine";
import { type Handler, resultOf, type TaskAtWork, userPlaces, type WorkerContext } from "../context.ts";

const namesMax = 100;

interface Pass {
  context: WorkerContext;
  task: TaskAtWork;
  input: ReapInput;
  /** Objects as stored: nothing needs to be decrypted to be removed. */
  repository: Repository;
  run: RunContext;
  result: ReapResult;
  youngFrom: Date;
}

/**
 * One pass of the reaper: removes objects of backups that are gone, what operations have staged, and what puts and restores have left
 * behind. Every candidate is checked against the database right before it is removed; what is young, in use or not known to be ours stays.
 */
export const reapRepositoryTask: Handler = async (task, context, run) => {
  const input = documents.reapInput(task.operation.input);
  const opened = await context.sites.repository(input.repository);
  const removed: ReapCounts = {
    objects: 0,
    staged: 0,
    temporary: 0,
    uploads: 0,
    volumes: 0,
    snapshots: 0,
    private: 0,
    exports: 0,
  };
  const result: ReapResult = { dry_run: input.dryRun, removed, names: [], unknown: [], unreached: [], passed_over: [] };
  const repository = opened.encryption?.stored ?? opened;
  const youngFrom = await graceBegan(context.database, input);
  const pass: Pass = { context, task, input, repository, run, result, youngFrom };
  const named = await readContainers(context.database, input.repository);
  await reapPlaces(pass, named);
  await reapLeftovers(pass, named);
  for (const { name } of context.config.volume_backends) await reapBackend(pass, name);
  await reapExports(pass);
  await finishReap(context.database, task.operation, resultOf(task), result);
};

const isYoung = ({ youngFrom }: Pass, modifiedAt: Date): boolean => modifiedAt > youngFrom;

const passOver =
  ({ context, result }: Pass) =>
  (place: string, reason: string): void => {
    context.log.warn({ place, reason }, "the reaper cannot look there");
    if (result.passed_over.length < namesMax && !result.passed_over.includes(place)) result.passed_over.push(place);
  };

/** One item that cannot be examined or removed does not end the pass, as long as the repository itself responds. */
async function alone(pass: Pass, place: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    pass.run.signal.throwIfAborted();
    if (!(await isOnlyHere(pass.repository, error))) throw error;
    passOver(pass)(place, (error as Error).message);
  }
}

function count({ result }: Pass, kind: keyof ReapCounts, name: string, items = 1): void {
  result.removed[kind] += items;
  if (result.names.length < namesMax) result.names.push(name);
}

/**
 * In a folder, everything belongs to the repository. In an object store, the account may have containers of others: only those named in
 * rows are examined.
 */
async function* containersOf(pass: Pass, named: readonly string[]): AsyncGenerator<string> {
  const { ownContainer } = pass.repository;
  if (ownContainer === null) return yield* pass.repository.containers(passOver(pass));
  yield* new Set([ownContainer, ...named]);
}

async function reapPlaces(pass: Pass, named: readonly string[]): Promise<void> {
  const { context, input, repository, run, result } = pass;
  for await (const place of findPlaces(repository, containersOf(pass, named), run.signal, passOver(pass))) {
    if (isYoung(pass, place.modifiedAt)) continue;
    const verdict = await judgePlace(context.database, input, place);
    if (verdict === "unknown" && result.unknown.length < namesMax) result.unknown.push(nameOf(place));
    if (verdict === "orphan") await alone(pass, nameOf(place), () => reapPlace(pass, place));
  }
}

const nameOf = ({ container, prefix }: ListedPlace): string => `${container}/${prefix}`;

async function reapPlace(pass: Pass, place: ListedPlace): Promise<void> {
  const { context, task, input, repository, run } = pass;
  const { container, prefix, objects } = place;
  if (input.dryRun) return count(pass, "objects", nameOf(place), objects);
  if (!(await condemnPlace(context.database, task.operation, input, place))) return;
  // Its progress counts objects, and restarts with each place.
  const quiet = { ...run, onProgress: () => {} };
  const { removed } = await context.engine.removeBackup({ repository, container, prefix }, quiet);
  count(pass, "objects", nameOf(place), removed);
}

async function reapLeftovers(pass: Pass, named: readonly string[]): Promise<void> {
  const { context, input, repository, run } = pass;
  for await (const leftover of repository.leftovers(named, passOver(pass))) {
    run.signal.throwIfAborted();
    const { kind, name, ids } = describe(leftover);
    if (isYoung(pass, leftover.modifiedAt) || (await areBusy(context.database, ids, input.graceMs))) continue;
    await alone(pass, name, async () => {
      if (!input.dryRun) await repository.removeLeftover(leftover, run);
      count(pass, kind, name);
    });
  }
}

function describe(leftover: Leftover): { kind: keyof ReapCounts; name: string; ids: string[] } {
  switch (leftover.kind) {
    case "staged":
      return { kind: "staged", name: `.tephra/${leftover.operationId}`, ids: [leftover.operationId] };
    case "temporary":
      return { kind: "temporary", name: `.tephra/tmp/${leftover.name}`, ids: [] };
    case "upload":
      return { kind: "uploads", name: `${leftover.container}/${leftover.name}`, ids: idsIn(leftover.name) };
  }
}

async function reapBackend(pass: Pass, name: string): Promise<void> {
  const { context, input, run, result } = pass;
  const { database, sites } = context;
  const backend = await sites.backend(name).catch(() => null);
  if (backend === null) return void result.unreached.push(name);
  for await (const leftover of shownOf(pass, name, backend.leftovers())) {
    run.signal.throwIfAborted();
    const { kind, path, ids, modifiedAt } = leftover;
    if (isYoung(pass, modifiedAt) || (await areBusy(database, ids, input.graceMs))) continue;
    if (kind !== "private" && !(await isForgottenFile(database, kind, ids[0] ?? "", input.graceMs))) continue;
    run.fence();
    const gone = input.dryRun ? Promise.resolve() : backend.removeLeftover(leftover);
    const counted = gone.then(() => count(pass, backendKinds[kind], path));
    await counted.catch(ofStorage((reason) => passOver(pass)(path, reason)));
  }
}

const backendKinds = { volume: "volumes", snapshot: "snapshots", private: "private" } as const;

/** Workers can reach different folders: what this one does not see, another pass may. */
async function reapExports(pass: Pass): Promise<void> {
  const { context, input, run } = pass;
  for (const folder of await exportFolders(context.database)) {
    for await (const leftover of shownOf(pass, folder, exportLeftovers(folder, userPlaces(context.config)))) {
      run.signal.throwIfAborted();
      const busy = await areBusy(context.database, [leftover.operationId], input.graceMs);
      if (busy || isYoung(pass, leftover.modifiedAt)) continue;
      run.fence();
      const path = join(folder, leftover.name);
      const gone = input.dryRun ? Promise.resolve() : leftover.remove();
      const counted = gone.then(() => count(pass, "exports", path));
      await counted.catch(ofStorage((reason) => passOver(pass)(path, reason)));
    }
  }
}

/** Lists a place until its storage refuses: the other places go on. */
async function* shownOf<Item>(pass: Pass, place: string, items: AsyncIterable<Item>): AsyncGenerator<Item> {
  try {
    yield* items;
  } catch (error) {
    ofStorage((reason) => passOver(pass)(place, reason))(error);
  }
}

/** For catch(): errors of the storage of volumes and exports are recorded; anything else is rethrown. */
const ofStorage =
  (tell: (reason: string) => void) =>
  (error: unknown): undefined => {
    if (!(error instanceof EngineError) || !/^(?:volume_storage|backend_unavailable)/.test(error.code)) throw error;
    tell(error.message);
  };
