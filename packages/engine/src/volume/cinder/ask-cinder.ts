import { CinderRefusedError, CinderUnavailableError } from "@tephra/openstack";
import { NotReadyYetError, SourceMissingError, VolumeStorageError } from "../../errors.ts";

/** How long is waited for Cinder, in ms. */
export interface CinderPatience {
  cloneMs: number;
  deleteMs: number;
}

export const againMs = { min: 500, max: 5_000 } as const;

/** Half of what the thing has taken so far, within limits. */
export const waitFor = (what: string, sinceMs: number, giveUpAfterMs: number): NotReadyYetError => {
  const retryAfterMs = Math.min(againMs.max, Math.max(againMs.min, sinceMs / 2));
  return new NotReadyYetError(what, { retryAfterMs, giveUpAfterMs });
};

/** It is waited for as long as a clone may take. */
export const isAway = (error: CinderUnavailableError, { cloneMs }: CinderPatience): NotReadyYetError =>
  new NotReadyYetError(error.message, { cause: error, retryAfterMs: againMs.max / 2, giveUpAfterMs: cloneMs });

/** Cinder's own text for a source that is just changing its status. */
const inTransit = /status must be one of|status must be available or in-use/i;
const transitMs = 10_000;

/**
 * Makes a call of Cinder's an error of the engine: where it does not answer, the call is to be made again, for as long as a clone may take;
 * what it refuses, it refuses.
 */
export async function askCinder<Result>(
  what: string,
  patience: CinderPatience,
  call: () => Promise<Result>,
): Promise<Result> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof CinderUnavailableError) throw isAway(error, patience);
    if (!(error instanceof CinderRefusedError)) throw error;
    const { status, message } = error;
    if (status === 404) throw new SourceMissingError(`Cinder could not ${what}: ${message}`, { cause: error });
    if (status === 400 && inTransit.test(message)) {
      throw new NotReadyYetError(`Cinder refused to ${what}: ${message}`, {
        cause: error,
        retryAfterMs: 2_000,
        giveUpAfterMs: transitMs,
      });
    }
    const advice = status === 413 ? " The quota of the service project should be unlimited." : "";
    throw new VolumeStorageError(`Cinder refused to ${what}: ${message}${advice}`, { cause: error, retryable: false });
  }
}
