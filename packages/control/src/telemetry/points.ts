import { channel } from "node:diagnostics_channel";

const points = channel("tephra:point");

/**
 * Publishes that this process is at a named point, on the diagnostics channel `tephra:point`: nothing happens unless somebody listens, as
 * fault tests do. Of a task: `<kind>.claimed`, `<kind>` before each of its writes, `<kind>.reporting` before its report commits,
 * `<kind>.done` after. Of a machine's backup: `machine-backup.begun`, `.opened` with its disks, `.started` with its exports, `.ready` when that
 * is told, `.ending` before its end, `.ended` before that is told. Of the API: `request.received` and `request.answered`.
 */
export function atPoint(point: string): void {
  points.publish(point);
}
