/**
 * Every route of this dialect, in version 4's terms; version 3 has the same ones.
 *
 * To add a resource: a file of its own that exports a table of routes, listed below. A route is `[method, path, rule, handle]`; its path
 * begins behind `/api`, variable segments are in `call.params`. `handle(context, call)` reads `call.body` (`body.ts`: one form for XML and
 * JSON), calls a verb of the control plane, and answers with `shown`, `created` or `done` (`call.ts`). What it shows is an `Element`
 * (`element.ts`) with the fields of version 4, from one function per kind of object; `version-3.ts` has what differs in version 3. Lists go
 * through `searched` (`search.ts`), links that clients may want inlined through `followed` (`follow.ts`). Refusals: what a verb throws is
 * mapped in `faults.ts`, the only place with oVirt's words; `incomplete` and `invalidValue` are for the request itself, and an object that
 * only the body names is 400, not 404.
 */
import type { Route } from "./call.ts";
import { diskSnapshotRoutes } from "./disk-snapshots.ts";
import { diskRoutes } from "./disks.ts";
import { showEntryPoint } from "./entry-point.ts";
import { eventRoutes } from "./events.ts";
import { imageTransferRoutes } from "./image-transfers.ts";
import { infrastructureRoutes } from "./infrastructure.ts";
import { jobRoutes } from "./jobs.ts";
import { machineBackupRoutes } from "./machine-backups.ts";
import { diskAttachmentRoutes } from "./machine-disks.ts";
import { nicRoutes } from "./machine-nics.ts";
import { machineSnapshotRoutes } from "./machine-snapshots.ts";
import { machineRoutes } from "./machines.ts";
import { storageDomainRoutes } from "./storage-domains.ts";

export const ovirtRoutes: readonly Route[] = [
  ["GET", "/", "ovirt:get", showEntryPoint],
  ...infrastructureRoutes,
  ...storageDomainRoutes,
  ...jobRoutes,
  ...eventRoutes,
  ...imageTransferRoutes,
  ...diskRoutes,
  ...diskSnapshotRoutes,
  ...machineRoutes,
  ...nicRoutes,
  ...diskAttachmentRoutes,
  ...machineSnapshotRoutes,
  ...machineBackupRoutes,
];
