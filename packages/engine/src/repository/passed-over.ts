import { EngineError } from "../errors.ts";

/**
 * Called for items in the same account or folder that cannot be read and are therefore skipped: a container or a description, and the
 * failure.
 */
export type OnPassedOver = (place: string, reason: string) => void;

const closedCodes = ["repository_denied", "repository_unavailable", "invalid_container"];

/**
 * Calls `onPassedOver` for a failure which means that these credentials have no access, or that it cannot be one of our containers: an
 * item that is not known to belong to the repository must not make it unusable. Any other failure is thrown.
 */
export function passOver(place: string, error: unknown, onPassedOver: OnPassedOver): void {
  if (!isClosed(error)) throw error;
  onPassedOver(place, error.message);
}

function isClosed(error: unknown): error is EngineError {
  return error instanceof EngineError && !error.retryable && closedCodes.includes(error.code);
}
