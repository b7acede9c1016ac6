import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { project } from "../../kit/journey.ts";
import { startNbdWriter, startStorageDaemon } from "../../kit/qemu.ts";

async function counterOf(path: string): Promise<number> {
  const file = await open(path, "r");
  try {
    const block = Buffer.alloc(8);
    await file.read(block, 0, 8, 0);
    return Number(block.readBigUInt64BE());
  } finally {
    await file.close();
  }
}

it("a machine that writes all the time is backed up as of one moment, and restored to it when it is off", async () => {
  const sockets = mkdtempSync(join(tmpdir(), "tephra-vm-")); // Paths of sockets are short.
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rmSync(sockets, { recursive: true, force: true }));
  await using instance = await startInstance({ config: { instances: { qmp_socket_roots: [sockets] } } });
  const ask = async (method: string, path: string, body: unknown, status: number) => {
    const reply = await instance.request(method, path, body);
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
    return reply.body;
  };
  const volumes: string[] = [];
  for (const name of ["a", "b", "c"]) {
    const { volume } = await ask("POST", `/v3/${project}/volumes`, { volume: { size: 1, name } }, 202);
    volumes.push(volume.id);
  }
  const files = volumes.map((id) => join(instance.volumesDir, `volume-${id}`));
  for (const id of volumes) {
    await instance.waitFor(
      async () => (await ask("GET", `/v3/${project}/volumes/${id}`, undefined, 200)).volume.status === "available",
      { what: "the volumes are there", timeoutMs: 60_000 },
    );
  }
  const [boot] = volumes;
  const qmp_socket = join(sockets, "qmp.sock");
  const { instance: machine } = await ask(
    "POST",
    "/ops/instances",
    { instance: { name: "vm", project_id: project, boot_volume_id: boot, driver: "qmp", qmp_socket } },
    201,
  );
  for (const [index, volume_id] of volumes.entries()) {
    if (index === 0) continue;
    await ask("POST", `/ops/instances/${machine.id}/attach`, { volume_id, device: `/dev/vd${"abc"[index]}` }, 200);
  }
  const groups = `/v3/${project}/instance-groups/${machine.group_id}`;
  const names = ["a", "b", "c"];
  const served = files.map((path, index) => ({ name: names[index] ?? "", path }));
  await using daemon = await startStorageDaemon(sockets, served);
  const writer = await startNbdWriter(daemon.nbdSocket, names);
  const taken: { group_snapshot_id: string; name: string }[] = [];
  for (let round = 0; round < 3; round++) {
    const name = `round-${round}-${randomUUID()}`;
    const done = await ask("POST", `${groups}/backup`, { instance_id: machine.id, name, incremental: round > 0 }, 201);
    expect(done).toMatchObject({ operation: "backup", success: true, volume_id: volumes });
    taken.push({ group_snapshot_id: done.group_snapshot_id, name });
  }
  const last = await writer.stop();
  // The record says off, and the machine is asked all the same: nothing is put under one that runs.
  await ask("PUT", `/ops/instances/${machine.id}`, { instance: { power_state: "SHUTOFF" } }, 200);
  const restore = (index: number) => ({ instance_id: machine.id, ...taken[index] });
  const refused = await ask("PUT", `${groups}/restore`, restore(0), 400);
  expect(refused.badRequest.message).toContain("must be shut off before restore, but its status is ACTIVE");
  await daemon.program.stop();
  for (const path of files) expect(await counterOf(path)).toBe(last);
  let earlier = 0;
  for (let round = 0; round < 3; round++) {
    await ask("PUT", `${groups}/restore`, restore(round), 201);
    const [a = 0, b = 0, c = 0] = await Promise.all(files.map(counterOf));
    expect(a >= b && b >= c && c >= a - 1, `round ${round}: ${a} ${b} ${c}`).toBe(true);
    expect(a).toBeGreaterThan(earlier);
    expect(a).toBeLessThanOrEqual(last);
    earlier = a;
  }
}, 300_000);
