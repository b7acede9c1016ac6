import {
  ControlError,
  FilesUnreadableError,
  IdTakenError,
  InvalidError,
  NotFoundError,
  QuotaExceededError,
  RefusedError,
} from "@tephra/control";
import { mayPass } from "@tephra/control/process";
import { type Fault, identityFault, outageFault, unexpectedFault } from "../http/fault.ts";
import { IdentityUnavailableError, NoRouteError, Refusal, UnauthenticatedError } from "../http/refusals.ts";

/** The only mapping from errors to what a caller of our own routes sees. Status 500 means an unexpected error. */
export function faultOf(error: unknown): Fault {
  if (error instanceof Refusal) {
    const { status, message, retryAfter } = error;
    return { status, message, ...(retryAfter !== undefined && { retryAfter }) };
  }
  if (error instanceof UnauthenticatedError) {
    return { status: 401, message: "The request you have made requires authentication." };
  }
  if (error instanceof IdentityUnavailableError) return identityFault;
  if (error instanceof NoRouteError) return { status: 404, message: "The resource could not be found." };
  if (error instanceof NotFoundError) return { status: 404, message: error.message };
  if (error instanceof RefusedError || error instanceof FilesUnreadableError)
    return { status: 409, message: error.message };
  if (error instanceof InvalidError) return { status: 400, message: error.message };
  if (error instanceof QuotaExceededError) return { status: 413, message: error.message, retryAfter: 0 };
  if (error instanceof IdTakenError) return { status: 409, message: error.message };
  if (!(error instanceof ControlError) && mayPass(error)) return outageFault;
  return bodyFault(error) ?? unexpectedFault;
}

/** Errors thrown by the body parser: too long, truncated, invalid JSON. */
function bodyFault(error: unknown): Fault | null {
  const { type, status } = (error ?? {}) as { type?: unknown; status?: unknown };
  if (typeof type !== "string" || typeof status !== "number" || status >= 500) return null;
  return { status, message: status === 413 ? "Request is too large." : "Malformed request body" };
}
