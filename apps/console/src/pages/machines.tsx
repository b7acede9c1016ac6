import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ListedInstance } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign, Id } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const powerStates = ["ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED", "ERROR"];

const columns: readonly Column<ListedInstance>[] = [
  {
    name: "Power",
    cell: ({ power_state }) => <Status state={power_state} tone={power_state === "ERROR" ? "bad" : "gone"} />,
  },
  {
    name: "Machine",
    cell: ({ id, name }) => (
      <Link to="/machines/$id" params={{ id }}>
        <Foreign text={name} empty={id.slice(0, 8)} />
      </Link>
    ),
  },
  {
    name: "Protection",
    cell: ({ protection }) => (protection === null ? "—" : <Status state={protection.state} />),
  },
  { name: "Last backup", cell: ({ last_group_snapshot }) => <Age at={last_group_snapshot?.at} />, isNumber: true },
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
  const filters = useFilters("q", "state");
  const query = useQuery({
    ...route("GET /ops/instances", { query: filters.values }, { on: ["attachment", "backup", "group_snapshot"] }),
    ...kept,
  });
  return (
    <>
      <PageHead title="Machines" facts="Their disks are backed up and restored as one." />
      <FilterBar
        filters={filters}
        of={{ name: "state", label: "State of power", states: powerStates }}
        texts={[["q", "Name, or the start of an id"]]}
      />
      <Loaded query={query}>
        {({ instances, next }) => (
          <>
            <DataTable
              caption="Machines"
              columns={columns}
              rows={instances}
              keyOf={({ project_id, id }) => `${project_id} ${id}`}
              hrefOf={({ id }) => `/machines/${id}`}
              empty={
                <Empty filters={filters} what="No machine matches.">
                  <p>There is no machine yet.</p>
                  <Command text="tephra instance create --name vm --boot VOLUME" />
                </Empty>
              }
            />
            <Pages filters={filters} next={next} />
          </>
        )}
      </Loaded>
    </>
  );
}
