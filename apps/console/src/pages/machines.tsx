import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Instance } from "@tephra/wire";
import { route } from "../data/queries.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign, Id } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const columns: readonly Column<Instance>[] = [
  {
    name: "Power",
    cell: ({ power_state }) => <Status state={power_state} tone={power_state === "ERROR" ? "bad" : "gone"} />,
  },
  { name: "Machine", cell: ({ name }) => <Foreign text={name} /> },
  {
    name: "Disks",
    cell: ({ attachments }) => (
      <span className="stack">
        {attachments.map(({ volume_id, device }) => (
          <Link key={volume_id} to="/volumes/$id" params={{ id: volume_id }}>
            <Foreign text={device} empty="disk" /> <Id id={volume_id} />
          </Link>
        ))}
      </span>
    ),
  },
  { name: "Driver", cell: ({ driver }) => driver },
  { name: "Project", cell: ({ project_id }) => <Id id={project_id} /> },
  { name: "Made", cell: ({ created_at }) => <Age at={created_at} />, isNumber: true },
];

/** Machines, whose disks are backed up and restored as one. */
export function MachinesPage() {
  const query = useQuery(route("GET /ops/instances", { query: { limit: 1000 } }, { on: ["attachment"] }));
  return (
    <>
      <PageHead title="Machines" facts="Their disks are backed up and restored as one." />
      <Loaded query={query}>
        {({ instances }) => (
          <DataTable
            caption="Machines"
            columns={columns}
            rows={instances}
            keyOf={({ id }) => id}
            empty={
              <>
                <p>There is no machine yet.</p>
                <Command text="tephra instance create --name vm --boot VOLUME" />
              </>
            }
          />
        )}
      </Loaded>
    </>
  );
}
