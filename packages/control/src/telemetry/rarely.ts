/** Reads what takes long to read, at most once in this time: those who ask meanwhile are told the same. */
export function rarely<T>(everyMs: number, read: () => Promise<T>): () => Promise<T> {
  let last: { at: number; value: Promise<T> } | null = null;
  return () => {
    const now = performance.now();
    if (last && now - last.at < everyMs) return last.value;
    const value = read();
    last = { at: now, value };
    // What could not be read is read again by the next who asks.
    value.catch(() => {
      last = null;
    });
    return value;
  };
}

/** The same of each of many things, by its name; beyond `keysMax` names all are read anew. */
export function rarelyEach<T>(everyMs: number, keysMax: number): (key: string, read: () => Promise<T>) => Promise<T> {
  const kept = new Map<string, () => Promise<T>>();
  return (key, read) => {
    const known = kept.get(key);
    if (known) return known();
    if (kept.size >= keysMax) kept.clear();
    const reader = rarely(everyMs, read);
    kept.set(key, reader);
    return reader();
  };
}
