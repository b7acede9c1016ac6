import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { call } from "../data/api.ts";
import { backupsPath, type CinderBackup, type CinderVolume, startBackup, utc, volumePath } from "../data/cinder.ts";
import { ofOperations, path, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { Action, ReasonField } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { CalendarPanel } from "../parts/calendar.tsx";
import { quoted, shown } from "../parts/format.ts";
import { OperationsTable } from "../parts/operations-table.tsx";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Command, CopyButton, Foreign, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

const columns: readonly Column<CinderBackup>[] = [
  { name: "State", cell: ({ status }) => <Status state={status} /> },
  {
    name: "Backup",
    cell: ({ id, name }) => (
      <Link to="/backups/$id" params={{ id }}>
        <Foreign text={name} empty={id.slice(0, 8)} />
      </Link>
    ),
  },
  { name: "Kind", cell: ({ is_incremental }) => (is_incremental ? "incremental" : "full") },
  { name: "As of", cell: ({ data_timestamp, created_at }) => <Moment at={utc(data_timestamp ?? created_at)} /> },
  { name: "Objects", cell: ({ object_count }) => object_count, isNumber: true },
  { name: "Id", cell: ({ id }) => <Id id={id} /> },
];

function Backups({ id }: { id: string }) {
  const { project_id } = useSession();
  const query = useQuery(
    path<{ backups: CinderBackup[] }>(
      backupsPath(project_id, { volume_id: id, sort: "created_at:desc", limit: "100", all_tenants: "1" }),
      { on: ["backup"] },
    ),
  );
  return (
    <Panel title="Backups" facts="Newest first.">
      <Loaded query={query}>
        {({ backups }) => (
          <DataTable
            caption="Backups of this volume"
            columns={columns}
            rows={backups}
            keyOf={(row) => row.id}
            hrefOf={(row) => `/backups/${row.id}`}
            empty={
              <>
                <p>It was never backed up.</p>
                <Command text={`tephra backup create ${quoted(id)} --wait`} />
              </>
            }
          />
        )}
      </Loaded>
    </Panel>
  );
}

function Operations({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/operations", { query: { volume_id: id, limit: 20 } }, ofOperations));
  return (
    <Panel title="Operations" facts="The last twenty.">
      <Loaded query={query}>
        {({ operations }) => <OperationsTable rows={operations} empty={<p>Nothing was asked for yet.</p>} />}
      </Loaded>
    </Panel>
  );
}

function Policy({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/volumes/:id/policy", { params: { id } }, { on: [] }));
  return (
    <Panel title="Policy">
      <Loaded query={query} lines={1}>
        {({ policy, why }) => (
          <p>
            {policy && (
              <Link to="/policies/$id" params={{ id: policy.id }}>
                <Foreign text={policy.name} />
              </Link>
            )}{" "}
            {shown(why)}
          </p>
        )}
      </Loaded>
    </Panel>
  );
}

function Exclusion({ id }: { id: string }) {
  const [reason, setReason] = useState("");
  return (
    <Action
      label="Exclude"
      effects={
        <>
          <p>The volume no longer counts as late or never backed up, and no policy backs it up.</p>
          <ReasonField value={reason} onChange={setReason} />
        </>
      }
      isFilled={reason.trim() !== ""}
      command={`tephra volume exclude ${quoted(id)} --reason ${quoted(reason || "REASON")}`}
      run={() => call("PUT /ops/volumes/:id/exclusion", { params: { id }, body: { reason } })}
      done="The volume is excluded."
    />
  );
}

function Actions({ id }: { id: string }) {
  const may = useMay();
  const { project_id } = useSession();
  return (
    <>
      {may("backup:create") && (
        <>
          <Action
            label="Back up now"
            isPrimary
            run={() => startBackup(project_id, { volume_id: id, force: true })}
            done="A full backup was asked for."
          />
          <Action
            label="Back up changes"
            run={() => startBackup(project_id, { volume_id: id, incremental: true, force: true })}
            done="An incremental backup was asked for."
          />
        </>
      )}
      {may("ops:exclusion") && <Exclusion id={id} />}
    </>
  );
}

/** One volume: what it can be restored to, by which policy, and what was done with it. */
export function VolumePage() {
  const id = useId();
  const { project_id } = useSession();
  const details = useQuery(route("GET /ops/volumes/:id", { params: { id } }, { on: [] }));
  const named = useQuery(path<{ volume: CinderVolume }>(volumePath(project_id, id), { on: [] }));
  return (
    <>
      <PageHead
        title={<Foreign text={named.data?.volume.name} empty="Volume" />}
        facts={
          <>
            {details.data && <Status state={details.data.volume.status} />} <code>{shown(id)}</code>{" "}
            <CopyButton text={id} label="Copy the id of the volume" />
          </>
        }
        actions={details.data && <Actions id={id} />}
      />
      <Loaded query={details}>
        {({ volume }) => (
          <>
            <Facts
              of={[
                ["Size", <Bytes key="size" bytes={volume.bytes} />],
                ["Backend", <Foreign key="backend" text={volume.backend} />],
                ["Made", <Age key="made" at={utc(named.data?.volume.created_at ?? null)} />],
              ]}
            />
            <Backups id={id} />
            <CalendarPanel id={id} />
            <Policy id={id} />
            <Operations id={id} />
          </>
        )}
      </Loaded>
    </>
  );
}
