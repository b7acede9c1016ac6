import { z } from "zod";
import { HypervisorRefusedError, HypervisorUnavailableError } from "../../../errors.ts";
import type { QmpClient } from "../qmp-client.ts";

/** Connections of all clients together: eight of each reader, and more disks than a machine has. */
const connectionsMax = 1024;
const endMs = 30_000;
const lookEveryMs = 250;

const Exports = z.array(z.object({ id: z.string(), type: z.string() }));

async function listExports(qmp: QmpClient): Promise<z.infer<typeof Exports>> {
  return Exports.parse(await qmp.execute("query-block-exports"));
}

interface NbdExport {
  id: string;
  node: string;
  name: string;
  writable: boolean;
  bitmaps: readonly string[];
}

/** Exports a node, by the process's one NBD server, which is started there unless it runs. */
export async function addExport(qmp: QmpClient, socketPath: string, { bitmaps, ...added }: NbdExport): Promise<void> {
  if (socketPath === "") throw new HypervisorUnavailableError("The machine has no socket for exports.");
  const addr = { type: "unix", data: { path: socketPath } };
  await qmp.execute("nbd-server-start", { addr, "max-connections": connectionsMax }).catch((error: unknown) => {
    if (!(error instanceof HypervisorRefusedError) || !/already running/.test(error.message)) throw error;
  });
  const { id, node, name, writable } = added;
  const marked = bitmaps.length === 0 ? {} : { bitmaps };
  await qmp.execute("block-export-add", { id, type: "nbd", "node-name": node, name, writable, ...marked });
}

export const hasExport = async (qmp: QmpClient, id: string): Promise<boolean> =>
  (await listExports(qmp)).some((each) => each.id === id);

/** Ends an export, and the connections to it. */
export async function removeExport(qmp: QmpClient, id: string): Promise<void> {
  if (await hasExport(qmp, id)) {
    await qmp.execute("block-export-del", { id, mode: "hard" });
    for (const until = performance.now() + endMs; await hasExport(qmp, id); ) {
      if (performance.now() > until) throw new HypervisorUnavailableError(`The export ${id} does not end.`);
      await qmp.changed(lookEveryMs);
    }
  }
}

/** With the last export the NBD server ends, and its socket is removed. */
export async function stopIdleServer(qmp: QmpClient): Promise<void> {
  if ((await listExports(qmp)).some(({ type }) => type === "nbd")) return;
  await qmp.execute("nbd-server-stop").catch((error: unknown) => {
    if (!(error instanceof HypervisorRefusedError)) throw error; // It does not run.
  });
}
