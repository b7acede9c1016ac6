/*
 * A program for tests: takes the snapshots of a machine's disks through its monitor, and kills itself at its n-th fence check. Prints
 * every check.
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
