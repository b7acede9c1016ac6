/**
 * Runs `work` over the items with at most `concurrency` calls in flight and yields the results in the items' order. Items are taken, and
 * calls started, in order. When one call fails or the consumer stops, the others' signal is aborted and all of them have settled before
 * the failure is passed on: nothing continues in the background.
 */
export async function* mapConcurrent<Item, Result>(
  items: Iterable<Item> | AsyncIterable<Item>,
  work: (item: Item, signal: AbortSignal) => Promise<Result>,
  options: { concurrency: number; signal: AbortSignal },
): AsyncGenerator<Result> {
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const inFlight: Promise<Result>[] = [];
  try {
    for await (const item of items) {
      signal.throwIfAborted();
      const running = work(item, signal);
      running.catch((error: unknown) => stop.abort(error));
      inFlight.push(running);
      if (inFlight.length >= options.concurrency) yield await (inFlight[0] as Promise<Result>);
      if (inFlight.length >= options.concurrency) inFlight.shift();
    }
    while (inFlight[0] !== undefined) {
      yield await inFlight[0];
      inFlight.shift();
    }
  } catch (error) {
    throw stop.signal.aborted && !options.signal.aborted ? stop.signal.reason : error;
  } finally {
    stop.abort(new Error("The results are no longer wanted."));
    await Promise.allSettled(inFlight);
  }
}
