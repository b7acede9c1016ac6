/**
 * A request that the HTTP layer itself refuses, before any verb is called, because of its credentials, form or policy. Every dialect
 * renders it in its own form; `message` is shown to the caller.
 */
export class Refusal extends Error {
  readonly status: number;
  /** Seconds. */
  readonly retryAfter: number | undefined;
  constructor(status: number, message: string, options: { retryAfter?: number } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = options.retryAfter;
  }
  override get name(): string {
    return "Refusal";
  }
}

export const badRequest = (message: string): Refusal => new Refusal(400, message);

/** No such route, or a method that the route does not support. Each dialect renders it in its own form. */
export class NoRouteError extends Error {
  override get name(): string {
    return "NoRouteError";
  }
}

/** No token, or an unknown one. */
export class UnauthenticatedError extends Error {
  override get name(): string {
    return "UnauthenticatedError";
  }
}

/** Tokens cannot be validated at the moment. Not the caller's fault: a client that receives 401 would discard its token. */
export class IdentityUnavailableError extends Error {
  override get name(): string {
    return "IdentityUnavailableError";
  }
}
