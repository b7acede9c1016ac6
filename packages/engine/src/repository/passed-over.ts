import { EngineError } from "../errors.ts";

/**
 * Told of what lies in the same account or folder, cannot be looked at, and is therefore passed over: a container, or other things in words,
 * and the failure.
 */
export type OnPassedOver = (place: string, reason: string) => void;

const closedCodes = ["repository_denied", "repository_unavailable", "invalid_container"];

/**
 * Calls `onPassedOver` for a failure that says that something stays closed to these rights, or cannot be a container of ours at all: what is
 * not known to be the repository's own must not keep it from being used. Any other failure is thrown.
 */
export function passOver(place: string, error: unknown, onPassedOver: OnPassedOver): void {
  if (!isClosed(error)) throw error;
  onPassedOver(place, error.message);
}

function isClosed(error: unknown): error is EngineError {
  return error instanceof EngineError && !error.retryable && closedCodes.includes(error.code);
}
