import { about } from "./about.ts";
import { alerts } from "./alerts.ts";
import { audit } from "./audit.ts";
import { opsBackups } from "./backups.ts";
import { changes } from "./changes.ts";
import { documentation } from "./documentation.ts";
import { opsFiles } from "./files.ts";
import { opsGroupSnapshots } from "./group-snapshots.ts";
import { health } from "./health.ts";
import { instances } from "./instances.ts";
import { limits } from "./limits.ts";
import { notifications } from "./notifications.ts";
import type { Tables } from "./openapi.ts";
import { operations } from "./operations.ts";
import { overview } from "./overview.ts";
import { policies } from "./policies.ts";
import { projects } from "./projects.ts";
import { queue } from "./queue.ts";
import { repositories } from "./repositories.ts";
import { samples } from "./samples.ts";
import { search } from "./search.ts";
import type { OpsRoute } from "./serve.ts";
import { session } from "./session.ts";
import { opsVolumes } from "./volumes.ts";
import { workers } from "./workers.ts";

/** Our own routes: health, metrics, API documentation, operations, users' own files. The others are for the API documentation. */
export function opsRoutesBeside(others: Omit<Tables, "ops">): readonly OpsRoute[] {
  const docs = documentation(() => ({ ...others, ops: routes }));
  const routes: readonly OpsRoute[] = [
    ["GET", "/healthz", "public", health.alive],
    ["GET", "/readyz", "public", health.ready],
    ["GET", "/metrics", "public", health.metrics],
    ["GET", "/openapi.json", "public", docs.document],
    ["GET", "/docs/", "public", docs.page],
    ["GET", "/docs/start.js", "public", docs.start],
    ["GET", "/docs/swagger-ui-bundle.js", "public", docs.script],
    ["GET", "/docs/swagger-ui.css", "public", docs.style],
    ["GET", "/ops/session", "ops:session", session.show],
    ["POST", "/ops/session", "public", session.signIn],
    ["DELETE", "/ops/session", "public", session.signOut],
    ["GET", "/ops/overview", "ops:overview", overview.show],
    ["PUT", "/ops/alerts/:code/:subject/snooze", "ops:alert:snooze", alerts.snooze],
    ["DELETE", "/ops/alerts/:code/:subject/snooze", "ops:alert:snooze", alerts.endSnooze],
    ["GET", "/ops/changes", "ops:changes", changes.list],
    ["GET", "/ops/events", "ops:changes", changes.stream],
    ["GET", "/ops/workers", "ops:workers", workers.list],
    ["GET", "/ops/queue", "ops:queues", queue.show],
    ["GET", "/ops/samples", "ops:samples", samples.list],
    ["GET", "/ops/search", "ops:search", search.find],
    ["GET", "/ops/projects", "ops:projects", projects.list],
    ["GET", "/ops/repositories", "ops:repository", repositories.list],
    ["GET", "/ops/repositories/:name", "ops:repository", repositories.show],
    ["GET", "/ops/operations", "ops:operations", operations.list],
    ["GET", "/ops/operations/:id", "ops:operations", operations.show],
    ["GET", "/ops/operations/:id/ranges", "ops:operations", operations.ranges],
    ["POST", "/ops/operations/:id/cancel", "ops:operation:cancel", operations.cancel],
    ["POST", "/ops/operations/:id/retry", "ops:operation:retry", operations.retry],
    ["PUT", "/ops/operations/:id/priority", "ops:operation:prioritize", operations.prioritize],
    ["GET", "/ops/notifications", "ops:notifications", notifications.list],
    ["POST", "/ops/notifications/:id/retry", "ops:notifications:retry", notifications.retry],
    ["GET", "/ops/audit", "ops:audit", audit.list],
    ["GET", "/ops/volumes", "ops:volume", opsVolumes.list],
    ["GET", "/ops/protection/days", "ops:volume", opsVolumes.days],
    ["PUT", "/ops/volumes/:id/exclusion", "ops:exclusion", opsVolumes.exclude],
    ["DELETE", "/ops/volumes/:id/exclusion", "ops:exclusion", opsVolumes.include],
    ["GET", "/ops/volumes/:id", "ops:volume", opsVolumes.show],
    ["GET", "/ops/backups", "ops:backup", opsBackups.list],
    ["GET", "/ops/backups/:id", "ops:backup", opsBackups.show],
    ["GET", "/ops/backups/:id/chain", "ops:backup", opsBackups.chain],
    ["GET", "/ops/backups/:id/restore-check", "ops:backup", opsBackups.checkRestore],
    ["PUT", "/ops/backups/:id/hold", "ops:backup:hold", opsBackups.hold],
    ["DELETE", "/ops/backups/:id/hold", "ops:backup:hold", opsBackups.release],
    ["POST", "/ops/backups/:id/undelete", "ops:backup:undelete", opsBackups.undelete],
    ["GET", "/ops/deleted-backups", "ops:backup", opsBackups.deleted],
    ["DELETE", "/ops/deleted-backups/:id", "ops:backup:purge", opsBackups.purge],
    ["GET", "/ops/backups/:id/partitions", "ops:files", opsFiles.ofBackups.partitions],
    ["GET", "/ops/backups/:id/files", "ops:files", opsFiles.ofBackups.list],
    ["GET", "/ops/backups/:id/files/content", "ops:files", opsFiles.ofBackups.content],
    ["GET", "/ops/snapshots/:id/partitions", "ops:files", opsFiles.ofSnapshots.partitions],
    ["GET", "/ops/snapshots/:id/files", "ops:files", opsFiles.ofSnapshots.list],
    ["GET", "/ops/snapshots/:id/files/content", "ops:files", opsFiles.ofSnapshots.content],
    ["GET", "/ops/instances", "ops:instance:get", instances.list],
    ["POST", "/ops/instances", "ops:instance:create", instances.create],
    ["GET", "/ops/instances/:id", "ops:instance:get", instances.show],
    ["PUT", "/ops/instances/:id", "ops:instance:update", instances.update],
    ["DELETE", "/ops/instances/:id", "ops:instance:delete", instances.remove],
    ["POST", "/ops/instances/:id/attach", "ops:instance:update", instances.attach],
    ["POST", "/ops/instances/:id/detach", "ops:instance:update", instances.detach],
    ["GET", "/ops/policies", "ops:policy:get", policies.list],
    ["POST", "/ops/policies", "ops:policy:create", policies.create],
    ["GET", "/ops/policies/:id", "ops:policy:get", policies.show],
    ["PUT", "/ops/policies/:id", "ops:policy:update", policies.update],
    ["DELETE", "/ops/policies/:id", "ops:policy:delete", policies.remove],
    ["POST", "/ops/policies/simulate", "ops:policy:get", policies.simulate],
    ["POST", "/ops/policies/:id/preview", "ops:policy:get", policies.preview],
    ["GET", "/ops/policies/:id/assignments", "ops:policy:get", policies.assignments],
    ["POST", "/ops/policies/:id/assignments", "ops:policy:assign", policies.assign],
    ["DELETE", "/ops/policies/:id/assignments/:assignment_id", "ops:policy:assign", policies.unassign],
    ["POST", "/ops/policies/:id/run", "ops:policy:run", policies.run],
    ["GET", "/ops/policies/:id/runs", "ops:policy:get", policies.runs],
    ["GET", "/ops/policies/:id/runs/:run_id", "ops:policy:get", policies.showRun],
    ["GET", "/ops/volumes/:id/policy", "ops:policy:get", policies.ofVolume],
    ["GET", "/ops/group-snapshots/:id", "ops:group_snapshot", opsGroupSnapshots.show],
    ["POST", "/ops/backups/:id/verify", "ops:verify", opsBackups.verify],
    ["POST", "/ops/backups/:id/squash", "ops:squash", opsBackups.squash],
    ["POST", "/ops/repositories/:name/reap", "ops:reap", repositories.reap],
    ["POST", "/ops/repositories/:name/rescan", "ops:rescan", repositories.rescan],
    ["GET", "/ops/about", "ops:about", about.show],
    ["GET", "/ops/limits", "ops:limits", limits.list],
    ["PUT", "/ops/limits/:traffic/:scope/:name", "ops:limits:set", limits.set],
    ["DELETE", "/ops/limits/:traffic/:scope/:name", "ops:limits:set", limits.remove],
    ["POST", "/ops/volumes/import", "ops:import", opsVolumes.import],
    ["POST", "/ops/volumes/:id/export", "ops:export", opsVolumes.export],
  ];
  return routes;
}
