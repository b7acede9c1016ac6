import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { AnswerOf, BodyOf, Instance, ListedInstance } from "@tephra/wire";
import { type Command, Option } from "commander";
import type { Client } from "./client.ts";
import { chooseByName, isUuid, resolveId } from "./names.ts";
import { renderFields, renderTable } from "./output.ts";
import { addWaitOptions, openSession, type Session } from "./session.ts";

/** One backup of an instance: a group snapshot, with a backup of each volume. */
interface InstanceBackup {
  id: string;
  name: string;
  description: string | null;
  status: string;
  backups: { id: string; volume_id: string; status: string; size: number }[];
  created_at: string;
}

/** Options for creating and changing an instance. */
interface InstanceOptions {
  name?: string;
  state?: string;
  boot?: string;
  driver?: string;
  qmpSocket?: string;
  agentSocket?: string;
  freeze?: string[];
  configuration?: string;
}

export function addInstanceCommands(program: Command): void {
  const instance = program.command("instance").description("Virtual machines, backed up and restored as a unit.");
  addInstanceOptions(instance.command("create"))
    .description("Register a virtual machine. It can be backed up if it boots from a volume.")
    .option("--id <uuid>", "Its id in the virtualization system.")
    .action(create);
  instance.command("list").description("all instances of the project").action(list);
  instance.command("show").argument("<instance>", "id or name").action(show);
  addInstanceOptions(instance.command("set"))
    .argument("<instance>", "id or name")
    .description("Change its properties.")
    .action(set);
  instance
    .command("attach")
    .argument("<instance>", "id or name")
    .argument("<volume>", "id or name")
    .option("--device <device>", "Device name in the guest, such as /dev/vdb.")
    .action(attach);
  instance.command("detach").argument("<instance>", "id or name").argument("<volume>", "id or name").action(detach);
  instance
    .command("delete")
    .argument("<instance>", "id or name")
    .description("Remove the registration. Its volumes are kept.")
    .action(remove);
  addWaitOptions(instance.command("backup"))
    .description("Back up all volumes at the same point in time.")
    .argument("<instance>", "id or name")
    .requiredOption("--name <name>", "unique among its backups")
    .option("--description <text>")
    .option("--incremental", "Back up only what changed since the latest backups.")
    .action(backup);
  instance.command("backups").argument("<instance>", "id or name").description("its backups").action(backups);
  addBackupArguments(addWaitOptions(instance.command("restore")))
    .description("Restore all volumes, or none. The instance must be shut off.")
    .action(restore);
  addBackupArguments(addWaitOptions(instance.command("delete-backup")))
    .description("Delete an instance backup, including the backups of its volumes.")
    .action(removeBackup);
}

function addInstanceOptions(command: Command): Command {
  return command
    .option("--name <name>")
    .option("--state <state>", "Power state (ACTIVE, SHUTOFF, …), used by drivers that cannot query the machine.")
    .option("--boot <volume>", "Boot volume (id or name).")
    .addOption(new Option("--driver <driver>", "How the machine is controlled.").choices(["record", "qmp"]))
    .option("--qmp-socket <path>", "With driver qmp: the QMP monitor socket.")
    .option("--agent-socket <path>", "With driver qmp: the guest agent socket.")
    .option("--freeze <mountpoint...>", "Mount points that the guest agent freezes (default: all).")
    .option("--configuration <file>", "A JSON document that is stored with each backup.");
}

function addBackupArguments(command: Command): Command {
  return command.argument("<instance>", "id or name").argument("<backup>", "id or name of the instance's backup");
}

async function create({ id, ...options }: InstanceOptions & { id?: string }, command: Command): Promise<void> {
  const session = openSession(command);
  const { client } = session;
  const told = await documentOf(client, options);
  const project = client.project === undefined ? {} : { project_id: client.project };
  const body = { instance: { ...(id === undefined ? {} : { id }), ...project, ...told } };
  const { instance } = await client.post<AnswerOf<"PUT /ops/instances/:id">>("/ops/instances", body);
  print(session, instance);
}

async function list(_options: object, command: Command): Promise<void> {
  const session = openSession(command);
  const instances = await listInstances(session.client);
  const rows = instances.map((each) => [
    each.id,
    each.name,
    each.power_state,
    each.driver,
    each.attachments.length,
    each.protection?.state ?? null,
    each.last_group_snapshot?.at ?? null,
  ]);
  const head = ["ID", "NAME", "STATE", "DRIVER", "VOLUMES", "PROTECTION", "LAST BACKUP"];
  session.print({ instances }, renderTable(head, rows));
}

async function show(reference: string, _options: object, command: Command): Promise<void> {
  const session = openSession(command);
  print(session, await findInstance(session.client, reference));
}

async function set(reference: string, options: InstanceOptions, command: Command): Promise<void> {
  const session = openSession(command);
  const { id } = await findInstance(session.client, reference);
  const body = { instance: await documentOf(session.client, options) };
  const { instance } = await session.client.put<AnswerOf<"PUT /ops/instances/:id">>(`/ops/instances/${id}`, body);
  print(session, instance);
}

async function attach(
  reference: string,
  volume: string,
  { device }: { device?: string },
  command: Command,
): Promise<void> {
  const session = openSession(command);
  const { id } = await findInstance(session.client, reference);
  const volume_id = await resolveId(session.client, "volume", volume);
  const body: BodyOf<"POST /ops/instances/:id/attach"> = { volume_id, ...(device === undefined ? {} : { device }) };
  const { instance } = await session.client.post<AnswerOf<"PUT /ops/instances/:id">>(
    `/ops/instances/${id}/attach`,
    body,
  );
  print(session, instance);
}

async function detach(reference: string, volume: string, _options: object, command: Command): Promise<void> {
  const session = openSession(command);
  const { id } = await findInstance(session.client, reference);
  const volume_id = await resolveId(session.client, "volume", volume);
  const { instance } = await session.client.post<AnswerOf<"PUT /ops/instances/:id">>(`/ops/instances/${id}/detach`, {
    volume_id,
  } satisfies BodyOf<"POST /ops/instances/:id/detach">);
  print(session, instance);
}

async function remove(reference: string, _options: object, command: Command): Promise<void> {
  const session = openSession(command);
  const { id } = await findInstance(session.client, reference);
  await session.client.delete(`/ops/instances/${id}`);
  session.print({ instance: { id, status: "deleted" } }, renderFields({ id, status: "deleted" }));
}

async function backup(
  reference: string,
  options: { name: string; description?: string; incremental?: boolean },
  command: Command,
): Promise<void> {
  const session = openSession(command);
  const { client } = session;
  const instance = await findInstance(client, reference);
  const group = groupOf(instance);
  const { name, description, incremental } = options;
  await client.post(client.block(`/instance-groups/${group}/backup`), {
    instance_id: instance.id,
    name,
    async: true,
    ...(description === undefined ? {} : { description }),
    ...(incremental === true ? { incremental } : {}),
  });
  await session.settle({ kind: "group-backup", group_id: group });
  printBackup(session, await findBackup(client, group, name));
}

async function backups(reference: string, _options: object, command: Command): Promise<void> {
  const { client, print: write } = openSession(command);
  const found = await listBackups(client, groupOf(await findInstance(client, reference)));
  const rows = found.map((each) => [each.id, each.name, each.status, each.backups.length, each.created_at]);
  write({ backups: found }, renderTable(["ID", "NAME", "STATUS", "VOLUMES", "CREATED"], rows));
}

async function restore(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const { session, group, found } = await askForBackup(command, { reference, chosen, verb: "restore" });
  await session.settle({ kind: "group-restore", group_id: group });
  printBackup(session, await findBackup(session.client, group, found.id));
}

async function removeBackup(reference: string, chosen: string, _options: object, command: Command): Promise<void> {
  const { session, group, found } = await askForBackup(command, { reference, chosen, verb: "delete_backup" });
  await session.settle({ kind: "group-delete", group_id: group });
  const status = session.waiting === null ? "deleting" : "deleted";
  session.print({ backup: { id: found.id, status } }, renderFields({ id: found.id, status }));
}

/** Starts an operation on a backup of an instance; the service also requires the backup's name. */
async function askForBackup(
  command: Command,
  { reference, chosen, verb }: { reference: string; chosen: string; verb: "restore" | "delete_backup" },
): Promise<{ session: Session; group: string; found: InstanceBackup }> {
  const session = openSession(command);
  const { client } = session;
  const instance = await findInstance(client, reference);
  const group = groupOf(instance);
  const found = await findBackup(client, group, chosen);
  const body = { instance_id: instance.id, group_snapshot_id: found.id, name: found.name, async: true };
  await client.put(client.block(`/instance-groups/${group}/${verb}`), body);
  return { session, group, found };
}

/** Only the options that were given. */
async function documentOf(client: Client, options: InstanceOptions): Promise<Record<string, unknown>> {
  const { name, state, boot, driver, qmpSocket, agentSocket, freeze, configuration } = options;
  const given = {
    name,
    power_state: state,
    boot_volume_id: boot === undefined ? undefined : await resolveId(client, "volume", boot),
    driver,
    qmp_socket: qmpSocket === undefined ? undefined : resolve(qmpSocket),
    agent_socket: agentSocket === undefined ? undefined : resolve(agentSocket),
    freeze_mountpoints: freeze,
    configuration: configuration === undefined ? undefined : readDocument(configuration),
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

function readDocument(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new Error(`${path} cannot be read as JSON: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}

export async function listInstances(client: Client, signal?: AbortSignal): Promise<ListedInstance[]> {
  return (await client.get<AnswerOf<"GET /ops/instances">>("/ops/instances?limit=1000", signal)).instances;
}

async function findInstance(client: Client, reference: string): Promise<Instance> {
  if (!isUuid(reference)) return chooseByName("instance", reference, await listInstances(client));
  return (await client.get<AnswerOf<"GET /ops/instances/:id">>(`/ops/instances/${reference}`)).instance;
}

async function listBackups(client: Client, group: string): Promise<InstanceBackup[]> {
  return await client.get<InstanceBackup[]>(client.block(`/instance-groups/${group}`));
}

async function findBackup(client: Client, group: string, reference: string): Promise<InstanceBackup> {
  return chooseByName("backup of the instance", reference, await listBackups(client, group));
}

/** @throws when the instance does not boot from a volume: it then has no group, and nothing that can be backed up together */
function groupOf({ name, group_id }: Instance): string {
  if (group_id !== null) return group_id;
  throw new Error(`Instance ${name} has no instance group: give it a volume to boot from (instance set --boot).`);
}

function print(session: Session, instance: Instance): void {
  const fields = {
    id: instance.id,
    name: instance.name,
    state: instance.power_state,
    driver: instance.driver,
    "qmp socket": instance.qmp_socket,
    "agent socket": instance.agent_socket,
    freezes: instance.freeze_mountpoints?.join(", "),
    "boots from": instance.boot_volume_id,
    volumes: instance.attachments.map(({ volume_id, device }) => `${device ?? "?"} ${volume_id}`).join(", "),
    group: instance.group_id,
    created: instance.created_at,
  };
  session.print({ instance }, renderFields(fields));
}

function printBackup(session: Session, backup: InstanceBackup): void {
  const fields = {
    id: backup.id,
    name: backup.name,
    status: backup.status,
    description: backup.description,
    volumes: backup.backups.map((each) => `${each.volume_id} (${each.status})`).join(", "),
    created: backup.created_at,
  };
  session.print({ backup }, renderFields(fields));
}
