import {
  type Config,
  type Database,
  type Hooks,
  hooksOf,
  type Logger,
  openDatabase,
  openMetrics,
} from "@tephra/control";
import { type Authenticate, authenticator } from "./auth.ts";
import { openThrottle, type Throttle } from "./throttle.ts";

/** Everything that a route needs, built once by `main.ts`. Routes keep no state of their own. */
export interface Context {
  readonly config: Config;
  readonly database: Database;
  readonly log: Logger;
  readonly metrics: ReturnType<typeof openMetrics>;
  readonly authenticate: Authenticate;
  readonly throttle: Throttle;
  readonly hooks: Hooks;
}

/** Connections to Postgres per API process: requests hold one for a few milliseconds, so more would only queue in the server. */
const connectionsMax = 10;

/** Opens no connection yet. The caller disconnects `database`. */
export function openContext(config: Config, log: Logger): Context {
  const hooks = hooksOf(config.crash_at);
  const database = openDatabase(config.database_url, connectionsMax, config.crash_at === null ? null : hooks);
  const [authenticate, throttle] = [authenticator(config.auth), openThrottle(config.rate_limits)];
  return { config, database, log, metrics: openMetrics(database), authenticate, throttle, hooks };
}
