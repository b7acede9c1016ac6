import {
  errnoOf,
  ObjectMissingError,
  RepositoryDeniedError,
  RepositoryFullError,
  RepositoryThrottledError,
  RepositoryUnavailableError,
} from "../errors.ts";
import type { ObjectKey } from "./repository.ts";

export interface HttpFailure {
  /** The place for messages, without secrets. */
  label: string;
  /** The attempted operation, as in "cannot store x". */
  verb: string;
  /** Undefined when no response arrived. */
  status: number | undefined;
  /** The service's own error code, if any. */
  reason: string;
  retryAfter?: string | null | undefined;
  cause?: unknown;
  /** The object that a 404 refers to. */
  missing?: ObjectKey | undefined;
}

/** S3 error codes for keys that are expired or not yet valid, whatever the status. */
const staleKeys = /^(?:ExpiredToken|InvalidToken|TokenRefreshRequired|InvalidAccessKeyId)\b/;

/** The only mapping from a response, or the lack of one, to an engine error. */
export function httpError(failure: HttpFailure): Error {
  const { label, verb, status, cause, reason } = failure;
  const what = `The repository ${label} cannot ${verb}: ${status ?? "no answer"}${reason === "" ? "" : `, ${reason}`}.`;
  if (status === undefined)
    return new RepositoryUnavailableError(what, { cause, retryable: !isCertificateFault(cause) });
  if (status === 404 && failure.missing !== undefined) return new ObjectMissingError(failure.missing, { cause });
  if (status === 401 || status === 403 || staleKeys.test(reason)) {
    return /quota/i.test(reason) ? full(what, cause) : new RepositoryDeniedError(what, { cause });
  }
  if (status === 413 || status === 507) return full(what, cause);
  if (status === 429 || status === 503 || status === 498) {
    return new RepositoryThrottledError(what, { cause, retryAfterMs: pauseOf(failure.retryAfter) });
  }
  // 408: too slow; 409: concurrent requests; 422 and digests: the bytes arrived damaged. All may succeed on a retry.
  const passing = status >= 500 ? status !== 501 : [408, 409, 422].includes(status);
  const retryable = passing || /^(?:BadDigest|RequestTimeout|IncompleteBody)\b/.test(reason);
  return new RepositoryUnavailableError(what, { cause, retryable });
}

function full(what: string, cause: unknown): RepositoryFullError {
  return new RepositoryFullError(`${what} Free space there or remove backups, then try again.`, { cause });
}

/** Retry-After: seconds, or a date. */
function pauseOf(header: string | null | undefined): number | null {
  if (header === null || header === undefined) return null;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) && ms > 0 ? ms : null;
}

/** Retrying does not make a certificate trusted. */
function isCertificateFault(error: unknown): boolean {
  const code = errnoOf(error) || errnoOf((error as { cause?: unknown } | undefined)?.cause);
  return /CERT|SELF_SIGNED|UNABLE_TO_|ERR_TLS/.test(code);
}
