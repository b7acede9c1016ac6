import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ProtectedVolume } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useFilters, useParameter } from "../parts/address.ts";
import { Days, DaysLegend, useDays } from "../parts/calendar.tsx";
import { Choice, Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { countText, durationText } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { FaultNote, Loaded } from "../parts/states.tsx";
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
  {
    name: "Machine",
    cell: ({ machine }) =>
      machine === null ? (
        "—"
      ) : (
        <Link to="/machines/$id" params={{ id: machine.id }}>
          <Foreign text={machine.name} empty={machine.id.slice(0, 8)} />
        </Link>
      ),
  },
  { name: "Project", cell: ({ project_id }) => <Id id={project_id} /> },
  { name: "Size", cell: ({ bytes }) => <Bytes bytes={bytes} />, isNumber: true },
  { name: "Last good", cell: ({ protection }) => <Age at={protection.last_good?.at} />, isNumber: true },
  { name: "Target", cell: ({ protection }) => durationText(protection.target_seconds), isNumber: true },
  { name: "Next", cell: ({ protection }) => <Age at={protection.next_at} />, isNumber: true },
  { name: "Proven", cell: ({ protection }) => <Age at={protection.last_good?.verified_at} />, isNumber: true },
  { name: "Points", cell: ({ points }) => countText(points), isNumber: true },
  {
    name: "Chain",
    cell: ({ chain_depth }) => (chain_depth === null ? "—" : countText(chain_depth + 1)),
    isNumber: true,
  },
  { name: "Stored", cell: ({ stored_bytes }) => <Bytes bytes={stored_bytes} />, isNumber: true },
  { name: "Policy", cell: ({ protection }) => <Foreign text={protection.policy?.name} empty="none" /> },
];

const texts = [
  ["q", "Name, or the start of an id"],
  ["backend", "Backend"],
] as const;
const orders = {
  age: "least protected first",
  name: "by name",
  size: "largest first",
  stored: "most stored first",
};
const calendarDays = 35;
const pageRows = 100;

/** The same volumes, with a square for each of the last days. */
function CalendarTable({ volumes, empty }: { volumes: readonly ProtectedVolume[]; empty: React.ReactNode }) {
  const query = useDays(
    volumes.map(({ id }) => id),
    calendarDays,
  );
  const known = new Map(query.data?.volumes.map(({ id, days }) => [id, days]));
  const from = query.data?.from ?? "";
  const days: Column<ProtectedVolume> = {
    name: `Last ${calendarDays} days`,
    cell: ({ id }) => (known.has(id) ? <Days id={id} from={from} days={known.get(id) ?? ""} /> : "—"),
  };
  return (
    <>
      {query.error && <FaultNote error={query.error} onRetry={() => void query.refetch()} />}
      <DataTable
        caption="Volumes and their days"
        columns={[...columns.slice(0, 2), days]}
        rows={volumes}
        keyOf={({ id }) => id}
        hrefOf={({ id }) => `/volumes/${id}`}
        empty={empty}
      />
      <DaysLegend />
    </>
  );
}

const views = ["table", "calendar"] as const;

/** Which volumes can be restored to a moment within their target, and which cannot. */
export function VolumesPage() {
  const filters = useFilters("state", "q", "project_id", "policy_id", "backend");
  const view = useParameter("view") ?? "table";
  const sort = useParameter("sort") ?? "age";
  const asked = { ...filters.values, sort, ...(view === "calendar" && { limit: pageRows }) };
  const query = useQuery({ ...route("GET /ops/volumes", { query: asked }, { on: ["volume", "backup"] }), ...kept });
  return (
    <>
      <PageHead
        title="Volumes"
        facts="Whether the newest good backup of each is within its target."
        actions={views.map((name) => (
          <Link
            key={name}
            className="button is-quiet"
            to="."
            search={
              ((now: object) => ({ ...now, view: name === "table" ? undefined : name, marker: undefined })) as never
            }
            aria-current={view === name ? "true" : undefined}
          >
            {name === "table" ? "Table" : "Calendar"}
          </Link>
        ))}
      />
      <Loaded query={query} lines={10}>
        {({ volumes, facets, next }) => {
          const empty = (
            <Empty filters={filters} what="No volume matches.">
              <p>There is no volume yet. Import one:</p>
              <Command text="tephra volume import FILE --name disk --wait" />
            </Empty>
          );
          return (
            <>
              <FilterBar
                filters={filters}
                of={{ name: "state", label: "State of protection", states, counts: facets.state }}
                texts={texts}
              />
              <div className="filters">
                <Choice
                  label="Order"
                  value={sort}
                  of={Object.entries(orders)}
                  onChange={(value) => filters.set({ sort: value })}
                />
              </div>
              {view === "calendar" ? (
                <CalendarTable volumes={volumes} empty={empty} />
              ) : (
                <DataTable
                  caption="Volumes and their protection"
                  columns={columns}
                  rows={volumes}
                  keyOf={({ id }) => id}
                  hrefOf={({ id }) => `/volumes/${id}`}
                  empty={empty}
                />
              )}
              <Pages filters={filters} next={next} />
            </>
          );
        }}
      </Loaded>
    </>
  );
}
