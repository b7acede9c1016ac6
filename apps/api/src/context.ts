import {
  type Config,
  countAlerts,
  countProtection,
  type Database,
  type Logger,
  listProjects,
  type ProjectFacts,
} from "@tephra/control";
import {
  besideSettings,
  type Certificates,
  type OnTrouble,
  openDatabase,
  openMetrics,
  rarely,
  tellTrouble,
} from "@tephra/control/process";
import { type Cinder, openCinder } from "@tephra/openstack";
import { type Authenticate, authenticator } from "./http/auth.ts";
import { openSessions, type Sessions } from "./http/sessions.ts";
import { openThrottle, type Throttle } from "./http/throttle.ts";
import { type BackupCounts, openBackupCounts } from "./ops/backup-counts.ts";
import { type Events, openEvents } from "./ops/events.ts";
import { type Overviews, openOverviews } from "./ops/overviews.ts";
import { openRedisQueues, type RedisQueues } from "./ops/redis-queues.ts";

/** Everything that a route needs, built once by `main.ts`. Routes keep no state of their own. */
export interface Context {
  readonly config: Config;
  readonly database: Database;
  /** The same database over connections reserved for probes. */
  readonly health: Database;
  /** Logs what probes find, once per change. */
  readonly tellProblems: OnTrouble;
  readonly log: Logger;
  readonly metrics: ReturnType<typeof openMetrics>;
  readonly overviews: Overviews;
  readonly backupCounts: BackupCounts;
  /** All projects; whoever asks again within ten seconds is told the same, since that reads all volumes and backups. */
  readonly projects: () => Promise<ProjectFacts[]>;
  readonly events: Events;
  readonly queues: RedisQueues;
  readonly authenticate: Authenticate;
  readonly sessions: Sessions;
  readonly throttle: Throttle;
  /** The Cinder that has the volumes; null: they are our own. */
  readonly cinder: Cinder | null;
  /** Of the HTTPS listener; null: there is none. */
  readonly certificates: Certificates | null;
}

/** PostgreSQL connections per API process: requests hold one for a few milliseconds, so more would only queue in the server. */
const connectionsMax = 16;

/** Opens no connections yet. The caller must disconnect `database`. */
export function openContext(config: Config, log: Logger, certificates: Certificates | null): Context {
  const onTrouble = tellTrouble(log);
  const database = openDatabase(config.database_url, {
    work: "request",
    connectionsMax,
    onTrouble,
  });
  const health = openDatabase(config.database_url, {
    work: "health",
    connectionsMax: 2,
    connectionsMin: 1,
    onTrouble,
  });
  const [authenticate, throttle] = [authenticator(config.auth), openThrottle(config.rate_limits)];
  const beside = besideSettings(config);
  const tellProblems = tellTrouble(log);
  const overviews = openOverviews(database, config);
  return {
    config,
    database,
    health,
    tellProblems,
    log,
    metrics: openMetrics(
      database,
      config,
      () => countProtection(database, config),
      (volumes) => countAlerts({ database, config, volumes }),
    ),
    overviews,
    backupCounts: openBackupCounts(database),
    projects: rarely(10_000, () => listProjects(database, config)),
    events: openEvents({ database, log, authenticate, overviews }),
    queues: openRedisQueues(config, log),
    authenticate,
    sessions: openSessions(config.auth, authenticate),
    throttle,
    cinder: beside && openCinder(beside),
    certificates,
  };
}
