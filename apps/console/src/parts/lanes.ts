/** A member of a family of backups, as far as the drawing needs it. */
export interface Linked {
  id: string;
  parent_id: string | null;
}

/**
 * Which lane each member is drawn in, members being newest first: one goes on in the lane of its parent, the newest that builds on it first; all
 * others that do begin lanes of their own, which end where their parent is. Pure.
 *
 * @returns for each member its lane, and the lanes beside it that only pass
 */
export function lanesOf(members: readonly Linked[]): { lane: number; passing: number[] }[] {
  /** Lane → the backup that comes next in it. */
  const awaited: (string | null)[] = [];
  return members.map(({ id, parent_id: parent }) => {
    const ending = awaited.flatMap((next, lane) => (next === id ? [lane] : []));
    const free = awaited.indexOf(null);
    const lane = ending[0] ?? (free < 0 ? awaited.length : free);
    for (const other of ending) awaited[other] = null;
    const passing = awaited.flatMap((next, at) => (next !== null && at !== lane ? [at] : []));
    awaited[lane] = parent;
    return { lane, passing };
  });
}

/** Members in the middle of a long chain, of which only how many there are is shown: runs without what must be seen. */
export function foldsOf(isPlain: readonly boolean[], shownMax: number): { from: number; count: number }[] {
  if (isPlain.length <= shownMax) return [];
  const folds: { from: number; count: number }[] = [];
  for (let from = 0; from < isPlain.length; from += 1) {
    let count = 0;
    while (isPlain[from + count]) count += 1;
    // A fold takes a row itself.
    if (count > 2) folds.push({ from: from + 1, count: count - 2 });
    from += count;
  }
  return folds;
}
