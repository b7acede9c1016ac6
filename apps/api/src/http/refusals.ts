/**
 * A request that the HTTP layer itself turns down, before any verb is called: the credentials, the form or the policy do not fit.
 * Every dialect renders it in its own form; `message` is shown to the caller.
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

/** No route, or a method that the route does not have. Dialects answer it in a form of its own. */
export class NoRouteError extends Error {
  override get name(): string {
    return "NoRouteError";
  }
}

/** No token, or one that nobody knows. */
export class UnauthenticatedError extends Error {
  override get name(): string {
    return "UnauthenticatedError";
  }
}

/** Nobody can say now whether a token is good. Not the caller's fault: a client that is told 401 would throw its token away. */
export class IdentityUnavailableError extends Error {
  override get name(): string {
    return "IdentityUnavailableError";
  }
}
