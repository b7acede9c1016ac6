import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ProtectedVolume } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { durationText } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Command, Foreign, Id } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const states = ["late", "at risk", "never", "excluded", "protected"] as const;

const columns: readonly Column<ProtectedVolume>[] = [
  { name: "State", cell: ({ protection }) => <Status state={protection.state} /> },
  {
    name: "Volume",
    cell: ({ id, name }) => (
      <Link to="/volumes/$id" params={{ id }}>
        <Foreign text={name} empty={id.slice(0, 8)} />
      </Link>
    ),
  },
  { name: "Project", cell: ({ project_id }) => <Id id={project_id} /> },
  { name: "Size", cell: ({ bytes }) => <Bytes bytes={bytes} />, isNumber: true },
  { name: "Last good", cell: ({ protection }) => <Age at={protection.last_good?.at} />, isNumber: true },
  { name: "Target", cell: ({ protection }) => durationText(protection.target_seconds), isNumber: true },
  { name: "Next", cell: ({ protection }) => <Age at={protection.next_at} />, isNumber: true },
  { name: "Policy", cell: ({ protection }) => <Foreign text={protection.policy?.name} empty="none" /> },
];

/** Which volumes can be restored to a moment within their target, and which cannot. */
export function VolumesPage() {
  const filters = useFilters("state");
  const query = useQuery({
    ...route("GET /ops/volumes", { query: filters.values }, { on: ["volume", "backup"] }),
    ...kept,
  });
  return (
    <>
      <PageHead title="Volumes" facts="Whether the newest good backup of each is within its target." />
      <Loaded query={query} lines={10}>
        {({ volumes, facets, next }) => (
          <>
            <FilterBar
              filters={filters}
              of={{ name: "state", label: "State of protection", states, counts: facets.state }}
            />
            <DataTable
              caption="Volumes and their protection"
              columns={columns}
              rows={volumes}
              keyOf={({ id }) => id}
              hrefOf={({ id }) => `/volumes/${id}`}
              empty={
                <Empty filters={filters} what="No volume is in this state.">
                  <p>There is no volume yet. Import one:</p>
                  <Command text="tephra volume import FILE --name disk --wait" />
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
