/*
 * A program for tests: opens a machine's disks in a pool, begins a backup, prints the pool's daemon, and waits to be killed.
 *
 *   node open-pool.ts '{"runFolder", "backup"}'
 */
import { openMachineDisks } from "@tephra/engine";

const { runFolder, backup } = JSON.parse(process.argv[2] ?? "{}");
const opened = await openMachineDisks({ driver: "record", powerState: "SHUTOFF", runFolder }, backup.disks);
const run = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const options = { freezeLimitMs: 1_000, requireConsistency: false, checkpointIds: [], checkpointsMax: 32 };
await opened.startBackup(backup, { ...options, since: new Map() }, run);
process.stdout.write(`${JSON.stringify(opened.daemon)}\n`);
setInterval(() => {}, 60_000);
