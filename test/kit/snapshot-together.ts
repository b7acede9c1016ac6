/*
 * A program for tests: takes the snapshots of a machine's disks by its monitor, and kills itself the moment it asks for the n-th
 * time whether it may still write. Prints every such moment.
 *
 *   node snapshot-together.ts '{"socket", "roots", "disks", "operationId", "killAt"}'
 */
import { openHypervisor } from "@tephra/engine";

const { socket, roots, disks, operationId, killAt } = JSON.parse(process.argv[2] ?? "{}");
let asked = 0;
const fence = (): void => {
  asked += 1;
  process.stdout.write(`asked ${asked}\n`);
  if (asked === killAt) process.kill(process.pid, "SIGKILL");
};
await using machine = openHypervisor({
  driver: "qmp",
  socket,
  agentSocket: null,
  freezeMountpoints: null,
  socketRoots: roots,
  powerState: "ACTIVE",
});
const run = { signal: new AbortController().signal, fence, onProgress: () => {} };
await machine.snapshotTogether(disks, { freezeLimitMs: 10_000, requireConsistency: false, operationId }, run);
