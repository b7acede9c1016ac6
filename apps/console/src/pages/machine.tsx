import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ListedInstance } from "@tephra/wire";
import { ask, call } from "../data/api.ts";
import { utc } from "../data/cinder.ts";
import { ofOperations, path, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { quoted, shown } from "../parts/format.ts";
import { OperationsTable } from "../parts/operations-table.tsx";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { CopyButton, Foreign, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

/** A backup of a machine as a whole, as the dialect of instance groups tells it. Sizes in GiB. */
interface MachineBackup {
  id: string;
  name: string;
  description: string | null;
  status: string;
  backups: { id: string; volume_id: string; status: string; size: number }[];
  created_at: string;
}

const groupPath = (project: string, group: string, verb = ""): string =>
  `/v3/${encodeURIComponent(project)}/instance-groups/${encodeURIComponent(group)}${verb}`;

/** How a backup was taken: asked for one by one, since the list does not say. */
function Consistency({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/group-snapshots/:id", { params: { id } }, { on: ["group_snapshot"] }));
  const taken = query.data?.group_snapshot;
  if (!taken) return <>—</>;
  const frozen = taken.frozen_ms === null ? "" : `, frozen for ${taken.frozen_ms} ms`;
  return (
    <>
      {taken.consistency ?? "—"}
      {frozen}
    </>
  );
}

function Restore({ of, machine, group }: { of: MachineBackup; machine: ListedInstance; group: string }) {
  const { project_id } = useSession();
  const isOff = machine.power_state === "SHUTOFF";
  const body = { instance_id: machine.id, group_snapshot_id: of.id, name: of.name, async: true };
  return (
    <Action
      label="Restore all"
      isDanger
      name={machine.name}
      why={isOff ? null : `the machine is ${machine.power_state}: shut it off first`}
      effects={<p>Every disk becomes what it was then, or none does. What was written since is lost.</p>}
      command={`tephra instance restore ${quoted(machine.id)} ${quoted(of.name)} --wait`}
      run={() => ask("PUT", groupPath(project_id, group, "/restore"), body)}
      done="The machine is being restored."
    />
  );
}

function backupColumns(machine: ListedInstance, group: string, mayRestore: boolean): readonly Column<MachineBackup>[] {
  const columns: readonly Column<MachineBackup>[] = [
    { name: "State", cell: ({ status }) => <Status state={status} /> },
    { name: "Backup", cell: ({ name }) => <Foreign text={name} /> },
    { name: "Made", cell: ({ created_at }) => <Moment at={utc(created_at) ?? created_at} /> },
    { name: "Consistency", cell: ({ id }) => <Consistency id={id} /> },
    {
      name: "Its parts",
      cell: ({ backups }) => (
        <span className="stack">
          {backups.map(({ id, volume_id, status }) => (
            <Link key={id} to="/backups/$id" params={{ id }}>
              <Id id={id} /> of disk <Id id={volume_id} />, {shown(status)}
            </Link>
          ))}
        </span>
      ),
    },
  ];
  if (!mayRestore) return columns;
  const restore: Column<MachineBackup> = {
    name: "Do",
    cell: (row) => (row.status === "available" ? <Restore of={row} machine={machine} group={group} /> : "—"),
  };
  return [...columns, restore];
}

function Backups({ machine, group }: { machine: ListedInstance; group: string }) {
  const { project_id } = useSession();
  const may = useMay();
  const query = useQuery(path<MachineBackup[]>(groupPath(project_id, group), { on: ["group_snapshot", "backup"] }));
  const operations = useQuery(route("GET /ops/operations", { query: { group_id: group, limit: 20 } }, ofOperations));
  return (
    <>
      <Panel title="Backups" facts="Of all disks, at one moment.">
        <Loaded query={query}>
          {(rows) => (
            <DataTable
              caption="Backups of the machine"
              columns={backupColumns(machine, group, may("instance_group:restore"))}
              rows={rows}
              keyOf={({ id }) => id}
              empty={<p>It was never backed up as a whole.</p>}
            />
          )}
        </Loaded>
      </Panel>
      <Panel title="Operations" facts="The last twenty.">
        <Loaded query={operations}>
          {({ operations: rows }) => <OperationsTable rows={rows} empty={<p>Nothing was done with it yet.</p>} />}
        </Loaded>
      </Panel>
    </>
  );
}

/** A name that no other backup of the machine has. */
const nameOfNow = (): string => new Date().toISOString().slice(0, 19).replaceAll(":", "-");

function Actions({ machine }: { machine: ListedInstance }) {
  const may = useMay();
  const { project_id } = useSession();
  const { id, group_id: group, driver, power_state } = machine;
  const params = { id };
  return (
    <>
      {may("instance_group:backup") && (
        <Action
          label="Back up now"
          isPrimary
          why={group === null ? "it boots from no volume" : null}
          run={() =>
            ask("POST", groupPath(project_id, group ?? "", "/backup"), {
              instance_id: id,
              name: nameOfNow(),
              async: true,
            })
          }
          done="All disks are being backed up."
        />
      )}
      {may("ops:instance:update") && driver === "record" && power_state !== "SHUTOFF" && (
        <Action
          label="It is shut off"
          effects={<p>Nothing shuts the machine off: say so only once it is. Its disks can be overwritten then.</p>}
          command={`tephra instance set ${quoted(id)} --state SHUTOFF`}
          run={() => call("PUT /ops/instances/:id", { params, body: { instance: { power_state: "SHUTOFF" } } })}
          done="The machine is known to be shut off."
        />
      )}
    </>
  );
}

/** One machine: how protected its disks are, and its backups as a whole. */
export function MachinePage() {
  const id = useId();
  const query = useQuery(
    route(
      "GET /ops/instances/:id",
      { params: { id } },
      { on: ["attachment", "backup", "group_snapshot"], everyMs: 5_000 },
    ),
  );
  const machine = query.data?.instance;
  return (
    <>
      <PageHead
        title={<Foreign text={machine?.name} empty="Machine" />}
        actions={machine && <Actions machine={machine} />}
        facts={
          <>
            {machine && <Status state={machine.power_state} tone={machine.power_state === "ERROR" ? "bad" : "gone"} />}{" "}
            <code>{shown(id)}</code> <CopyButton text={id} label="Copy the id of the machine" />
          </>
        }
      />
      <Loaded query={query}>
        {({ instance }) => (
          <>
            <Facts
              of={[
                [
                  "Protection of its worst disk",
                  instance.protection && (
                    <Link key="worst" to="/volumes/$id" params={{ id: instance.protection.volume_id }}>
                      <Status state={instance.protection.state} />
                    </Link>
                  ),
                ],
                ["Why", instance.protection?.reason && <Foreign key="why" text={instance.protection.reason} />],
                [
                  "Last backup of all",
                  instance.last_group_snapshot ? <Age key="last" at={instance.last_group_snapshot.at} /> : "never",
                ],
                ["Driver", instance.driver],
                ["Project", <Id key="project" id={instance.project_id} />],
                ["Made", <Moment key="made" at={instance.created_at} />],
              ]}
            />
            <Disks of={instance} />
            {instance.group_id !== null && <Backups machine={instance} group={instance.group_id} />}
          </>
        )}
      </Loaded>
    </>
  );
}

function Disks({ of: { attachments, boot_volume_id } }: { of: ListedInstance }) {
  return (
    <Panel title="Disks">
      <DataTable
        caption="Disks"
        columns={[
          { name: "Device", cell: ({ device }) => <Foreign text={device} empty="—" /> },
          {
            name: "Volume",
            cell: ({ volume_id }) => (
              <Link to="/volumes/$id" params={{ id: volume_id }}>
                <Id id={volume_id} />
              </Link>
            ),
          },
          { name: "Boots", cell: ({ volume_id }) => (volume_id === boot_volume_id ? "from it" : "—") },
          { name: "Attached", cell: ({ attached_at }) => <Age at={attached_at} />, isNumber: true },
        ]}
        rows={attachments}
        keyOf={({ volume_id }) => volume_id}
        empty={<p>It has no disk.</p>}
      />
    </Panel>
  );
}
