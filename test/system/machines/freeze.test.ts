import { mkdtemp } from "node:fs/promises";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { GuestAgent } from "../../../packages/engine/src/hypervisor/qmp/guest-agent.ts";
import { type GuestFilesystem, needsGuest, startGuestAgent } from "../../kit/guest-agent.ts";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";

const MiB = 1024 * 1024;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack, { config: { instance_groups: { manual_freeze_limit_ms: 120_000 } } });
}, 600_000);
afterAll(() => stack.disposeAsync());

const homeOf = ({ socketDir }: BackupWorld = world): string => dirname(socketDir);

/** A machine that runs, with that guest agent. */
async function machineWith(
  name: string,
  agentSocket: string,
  mountpoints: string[] | null,
  { addDisk, addMachine, run, instance }: BackupWorld = world,
  owner: AsyncDisposableStack = stack,
): Promise<string> {
  const disk = await addDisk(name, MiB);
  const id = await addMachine(name, [disk]);
  owner.use(await run(id, [disk]));
  await instance.sql("UPDATE instances SET agent_socket = $2, freeze_mountpoints = $3::jsonb WHERE id = $1", [
    id,
    agentSocket,
    JSON.stringify(mountpoints),
  ]);
  return id;
}

const ask = async (status: number, vm: string, verb: "freeze" | "thaw"): Promise<string> =>
  (await world.answered(status, "POST", `/vms/${vm}/${verb}filesystems`, { json: {} })).text;

/** Settles when nothing has the machine locked. */
const free = (vm: string, { instance }: BackupWorld = world): Promise<unknown> =>
  instance.waitFor(
    async () =>
      (await instance.sql("SELECT FROM groups WHERE instance_id = $1 AND operation_id IS NULL", [vm])).length === 1,
    { what: "the machine is free", timeoutMs: 60_000 },
  );

async function isFrozen({ agentSocket }: GuestFilesystem): Promise<boolean> {
  using agent = await GuestAgent.connect(agentSocket, [homeOf()]);
  return agent === null ? false : await agent.isFrozen();
}

it("a client freezes and thaws a guest; while the agent hangs nothing stays locked", async (context) => {
  needsGuest(context);
  await using guest = await startGuestAgent(await mkdtemp(join(homeOf(), "ga-")));
  const vm = await machineWith("frozen", guest.agentSocket, [guest.mountpoint]);
  await ask(200, vm, "freeze");
  expect(await isFrozen(guest)).toBe(true);
  const refused = await world.answered(409, "POST", `/vms/${vm}/freezefilesystems`, { json: {} });
  expect(refused.text).toContain("VM is locked");
  await ask(200, vm, "thaw");
  expect(await isFrozen(guest)).toBe(false);
  await ask(200, vm, "thaw");
  await free(vm);

  await ask(200, vm, "freeze");
  const pid = Number(/^\/proc\/(\d+)\//.exec(guest.folder)?.[1]);
  process.kill(pid, "SIGSTOP");
  try {
    expect(await ask(409, vm, "thaw")).toContain("No guest agent answers.");
    await free(vm);
  } finally {
    process.kill(pid, "SIGCONT");
  }
  await ask(200, vm, "thaw");
  expect(await isFrozen(guest)).toBe(false);
});

it("what a client has forgotten is thawed at the limit", async (context) => {
  needsGuest(context);
  await using own = new AsyncDisposableStack();
  const soon = await openBackupWorld(own, { config: { instance_groups: { manual_freeze_limit_ms: 300 } } });
  await using guest = await startGuestAgent(await mkdtemp(join(homeOf(soon), "ga-")));
  const vm = await machineWith("forgotten", guest.agentSocket, [guest.mountpoint], soon, own);
  await soon.answered(200, "POST", `/vms/${vm}/freezefilesystems`, { json: {} });
  await free(vm, soon);
  using agent = await GuestAgent.connect(guest.agentSocket, [homeOf(soon)]);
  expect(await agent?.isFrozen()).toBe(false);
});

it("a worker that is killed while a guest is frozen is followed by one that thaws it", async (context) => {
  needsGuest(context);
  await using guest = await startGuestAgent(await mkdtemp(join(homeOf(), "ga-")));
  const vm = await machineWith("orphan", guest.agentSocket, [guest.mountpoint]);
  await ask(200, vm, "freeze");
  const [worker] = world.instance.workers;
  worker?.kill("SIGKILL");
  await worker?.exited;
  await world.instance.startWorker();
  await free(vm);
  expect(await isFrozen(guest)).toBe(false);
});

it("without an agent that answers, and of a machine that does not run, it is refused and nothing is locked", async () => {
  const silent = createServer((socket) => void socket.on("error", () => {})).listen(join(homeOf(), "silent"));
  stack.defer(() => void silent.close());
  const vm = await machineWith("silent", join(homeOf(), "silent"), null);
  expect(await ask(409, vm, "freeze")).toContain("Cannot freeze VM filesystems. No guest agent answers.");
  await free(vm);
  const off = await world.addMachine("off", []);
  expect(await ask(409, off, "freeze")).toContain("VM is not running.");
  await ask(404, "00000000-0000-4000-8000-000000000001", "thaw");
});
