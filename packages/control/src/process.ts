/** What every program needs to run: its configuration, its connections, its log, and the background upkeep. */
export {
  allowFileThreads,
  backendSettings,
  besideSettings,
  defaultRepository,
  exchangeFolder,
  type KeystoneConfig,
  levelOf,
  loadConfig,
  type RepositoryConfig,
  repositorySettings,
} from "./config.ts";
export { inDatabase } from "./database-url.ts";
export { actAs } from "./db/actor.ts";
export { connectDatabase, sentenceOf } from "./db/connection.ts";
export { openDatabase } from "./db/database.ts";
export { isRetryableConflict, mayPass } from "./db/outage.ts";
export { type OnTrouble, openPool, tellTrouble } from "./db/pool.ts";
export { findDatabaseProblems, findStrayTimes, tellStrayTimes } from "./db/proof.ts";
export type { ImageTransfersConfig } from "./image-transfer-config.ts";
export { ownPlaces } from "./own-places.ts";
export { type Election, joinElection, type Role } from "./queue/election.ts";
export { installationOf, laneQueues, liveQueues, redisRefusals } from "./queue/workers.ts";
export { redisConnection, redisOptions } from "./redis-options.ts";
export { repairQuotas } from "./rows/quota-repair.ts";
export { atPoint } from "./telemetry/points.ts";
export { rarely, rarelyEach } from "./telemetry/rarely.ts";
export { logCrash, logVitals, openLog, openMetrics, type Vitals } from "./telemetry/telemetry.ts";
export { currentTrace, startTracing, traced } from "./telemetry/tracing.ts";
export { type Certificates, openCertificates } from "./tls/certificates.ts";
export { endBluntly } from "./upkeep/healing.ts";
export { beginTerm, reconcile, startReconciler } from "./upkeep/reconciler.ts";
export { backendFolder, type VolumeBackendConfig } from "./volume-backends.ts";
