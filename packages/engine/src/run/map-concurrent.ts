/**
 * Runs `work` over the items with at most `concurrency` calls in flight and yields the results in the items' order, or, with `anyOrder`, as
 * they come: then a long call does not keep short ones behind it waiting. Items are taken, and calls started, in order. When one call fails
 * or the consumer stops, the others' signal is aborted and all of them have settled before the failure is passed on: nothing continues in the
 * background.
 */
export async function* mapConcurrent<Item, Result>(
  items: Iterable<Item> | AsyncIterable<Item>,
  work: (item: Item, signal: AbortSignal) => Promise<Result>,
  options: { concurrency: number; signal: AbortSignal; anyOrder?: boolean },
): AsyncGenerator<Result> {
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const inFlight: Promise<Result>[] = [];
  const next = async (): Promise<{ done: Promise<Result>; result: Result }> => {
    const racing = options.anyOrder === true ? inFlight : inFlight.slice(0, 1);
    return Promise.race(racing.map(async (done) => ({ done, result: await done })));
  };
  try {
    for await (const item of items) {
      signal.throwIfAborted();
      const running = work(item, signal);
      running.catch((error: unknown) => stop.abort(error));
      inFlight.push(running);
      if (inFlight.length < options.concurrency) continue;
      const { done, result } = await next();
      yield result;
      inFlight.splice(inFlight.indexOf(done), 1);
    }
    while (inFlight.length > 0) {
      const { done, result } = await next();
      yield result;
      inFlight.splice(inFlight.indexOf(done), 1);
    }
  } catch (error) {
    throw stop.signal.aborted && !options.signal.aborted ? stop.signal.reason : error;
  } finally {
    stop.abort(new Error("The results are no longer wanted."));
    await Promise.allSettled(inFlight);
  }
}
