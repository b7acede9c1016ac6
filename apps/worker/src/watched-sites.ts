import type { Repository, RunContext, VolumeBackend } from "@tephra/engine";
import type { TaskPace } from "./bandwidth.ts";
import type { Places } from "./sites.ts";

/** Notified of every call that a task makes at a place, and of what it holds open there. */
export interface CallWatch {
  /**
   * A call begins; the returned function says that it has ended, in whatever way. `needsMs`: how much longer than others it may take, where
   * its progress cannot be seen.
   */
  begin(place: string, call: string, needsMs?: number): () => void;
  /** Something was opened there; the returned function says that it was closed. */
  opened(place: string): () => void;
  /** Progress: a piece of a stream arrived or was consumed. */
  moved(): void;
}

/**
 * Lowest rate, in bytes per second, at which a body handed to an object store in one piece may be sent while the store responds to others.
 */
const sentBytesPerSecondMin = 128 * 1024;

/** Of a volume in which little has changed nothing is heard until the storage has looked through all of it. Its driver gives up before. */
const changesNeedMs = 660_000;

type Callable = (...args: unknown[]) => unknown;

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null;
const isIterable = (value: unknown): value is AsyncIterable<unknown> =>
  isObject(value) && Symbol.asyncIterator in value;
const isThenable = (value: unknown): value is Promise<unknown> => isObject(value) && "then" in value;

/** How the bytes of a place are paced; null: not at all. */
type Pace = ReturnType<TaskPace["repository"]> | null;

const sizeOf = (value: unknown): number => (value instanceof Uint8Array ? value.length : 0);

/** The pieces of a stream that is read from a place: each of them is a call of its own. */
async function* piecesOf(stream: AsyncIterable<unknown>, begin: () => () => void, pace: Pace): AsyncGenerator<unknown> {
  const pieces = stream[Symbol.asyncIterator]();
  let whole = false;
  try {
    for (;;) {
      const ended = begin();
      const piece = await pieces.next().finally(ended);
      if (piece.done) {
        whole = true;
        return;
      }
      const wait = pace?.pace(sizeOf(piece.value));
      if (wait) await wait;
      yield piece.value;
    }
  } finally {
    if (!whole) await pieces.return?.();
  }
}

/** A body that a place consumes piece by piece: requesting a piece is progress. */
async function* bodyOf(stream: AsyncIterable<unknown>, moved: () => void, pace: Pace): AsyncGenerator<unknown> {
  for await (const piece of stream) {
    moved();
    const wait = pace?.pace(sizeOf(piece));
    if (wait) await wait;
    yield piece;
  }
}

/**
 * The same object with all of its calls watched: those that return a promise until it settles, streams piece by piece. What it opens is
 * watched in the same way.
 */
function watched<Target extends object>(target: Target, place: string, watch: CallWatch, pace: Pace): Target {
  const wrap = (value: unknown): unknown => {
    if (!isObject(value) || !(Symbol.asyncDispose in value)) return value;
    const closed = watch.opened(place);
    const close = async (): Promise<void> => (value as AsyncDisposable)[Symbol.asyncDispose]();
    const inner = watched(value, place, watch, pace);
    return new Proxy(inner, {
      get: (_, key) =>
        key === Symbol.asyncDispose ? () => close().finally(closed) : (inner as Record<PropertyKey, unknown>)[key],
    });
  };
  // Files are written in small pieces, and the fence is checked before each. An object store checks it before every attempt, all of which
  // may fail, so there it is no sign of progress.
  const unseen = "storage" in target && target.storage === "objects";
  const fencesSeen = (arg: unknown): unknown => {
    if (!isObject(arg) || !("fence" in arg) || typeof arg.fence !== "function") return arg;
    const { fence } = arg as RunContext;
    const seen = (): void => {
      fence();
      watch.moved();
    };
    return { ...arg, fence: seen };
  };
  const call = (name: string, method: Callable, args: unknown[]): unknown => {
    const whole = Math.max(0, ...args.map(sizeOf));
    const bytes = unseen ? whole : 0;
    const given = args.map((arg) =>
      isIterable(arg) ? bodyOf(arg, watch.moved, pace) : unseen ? arg : fencesSeen(arg),
    );
    const wait = name.startsWith("put") ? pace?.pace(whole) : null;
    const needsMs = name === "changedExtents" ? changesNeedMs : (bytes / sentBytesPerSecondMin) * 1000;
    const ended = watch.begin(place, name, needsMs);
    let result: unknown;
    try {
      result = wait ? wait.then(() => method.apply(target, given)) : method.apply(target, given);
    } catch (error) {
      ended();
      throw error;
    }
    if (isThenable(result)) return result.finally(ended).then(wrap);
    ended();
    return isIterable(result) ? piecesOf(result, () => watch.begin(place, name, needsMs), pace) : result;
  };
  return new Proxy(target, {
    get(_, key) {
      // Objects that are files are read and written by threads, which nothing paces: as streams, they are.
      if (["openFile", "filePath", "openDraft"].includes(String(key)) && pace?.limited() === true) return undefined;
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value === "function") return (...args: unknown[]) => call(String(key), value as Callable, args);
      // The repository beneath an encrypting one.
      return (key === "encryption" || key === "stored") && isObject(value) ? watched(value, place, watch, pace) : value;
    },
  });
}

/** The places as one task sees them: each of its calls there is watched, and its bytes are paced. */
export function watchSites(sites: Places, watch: CallWatch, pace: TaskPace): Places {
  const known = new Map<string, object>();
  const open = async <Place extends Repository | VolumeBackend>(
    place: string,
    opening: () => Promise<Place>,
    paced: Pace,
  ): Promise<Place> => {
    const ended = watch.begin(place, "open");
    const opened = await opening().finally(ended);
    const same = known.get(place) ?? watched(opened, place, watch, paced);
    known.set(place, same);
    return same as Place;
  };
  return {
    repository: (name) => open(`repository:${name}`, () => sites.repository(name), pace.repository(name)),
    backend: (name) => {
      pace.backend = name;
      return open(`backend:${name}`, () => sites.backend(name), null);
    },
  };
}
