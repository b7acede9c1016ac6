import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { Input, Label, TextField } from "react-aria-components/TextField";
import { ask } from "../data/api.ts";
import { utc } from "../data/cinder.ts";
import { type Service, servicesPath, servicesQuery } from "../data/services.ts";
import { useMay, useSession } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { shown } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

function Switch({ service }: { service: Service }) {
  const { project_id } = useSession();
  const [reason, setReason] = useState("");
  const { binary, host } = service;
  const change = (action: string, more: object = {}) =>
    ask("PUT", `${servicesPath(project_id)}/${action}`, { binary, host, ...more });
  if (service.status === "disabled") {
    return <Action label="Enable" run={() => change("enable")} done={`${host} gets work again.`} />;
  }
  return (
    <Action
      label="Disable"
      effects={
        <>
          <p>The host gets no new work. What it does it finishes.</p>
          <TextField className="field" value={reason} onChange={setReason}>
            <Label>Reason</Label>
            <Input maxLength={255} />
          </TextField>
        </>
      }
      run={() => change("disable-log-reason", { disabled_reason: reason || "no reason given" })}
      done={`${host} gets no new work.`}
    />
  );
}

const columns: readonly Column<Service>[] = [
  {
    name: "State",
    cell: ({ state, status }) => (
      <Status state={status === "disabled" ? "disabled" : state === "up" ? "live" : "down"} />
    ),
  },
  { name: "Service", cell: ({ binary }) => shown(binary) },
  { name: "Host", cell: ({ host }) => <Foreign text={host} /> },
  { name: "Zone", cell: ({ zone }) => <Foreign text={zone} /> },
  { name: "Heard of", cell: ({ updated_at }) => <Age at={utc(updated_at)} />, isNumber: true },
  { name: "Reason", cell: ({ disabled_reason }) => <Foreign text={disabled_reason} empty="—" /> },
];

/** Who does the work. */
export function WorkersPage() {
  const may = useMay();
  const { project_id } = useSession();
  const query = useQuery(servicesQuery(project_id));
  const shownColumns = may("volume_extension:services:update")
    ? [...columns, { name: "Do", cell: (row: Service) => <Switch service={row} /> }]
    : columns;
  return (
    <>
      <PageHead
        title="Workers & queue"
        facts="The processes that do the work, and the hosts that they are on."
        actions={
          <a className="button" href="/ops/queues" target="_blank" rel="noreferrer">
            Queue board
          </a>
        }
      />
      <Loaded query={query}>
        {({ services }) => (
          <DataTable
            caption="Services"
            columns={shownColumns}
            rows={services}
            keyOf={({ binary, host }) => `${binary} ${host}`}
            empty={
              <>
                <p>No worker ever came.</p>
                <Command text="npm start" />
              </>
            }
          />
        )}
      </Loaded>
    </>
  );
}
