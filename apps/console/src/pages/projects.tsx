import { useQuery } from "@tanstack/react-query";
import type { Project } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useFilters } from "../parts/address.ts";
import { Pages } from "../parts/filter.tsx";
import { countText } from "../parts/format.ts";
import { Meter, PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Foreign } from "../parts/texts.tsx";
import { toneOf } from "../parts/words.ts";

type Quota = Project["quota"];

/** From this share of its limit, a quota is nearly used up: as the alert has it. */
const nearPercent = 90;

/** What is used of a limit, as a bar; without a limit, the number alone. */
function Used({ of: { limit, in_use: used }, label }: { of: Quota["volumes"]; label: string }) {
  if (limit < 0) return <>{countText(used)}</>;
  const percent = limit === 0 ? 0 : Math.min(100, Math.floor((100 * used) / limit));
  return (
    <span className="stack">
      <span>
        {countText(used)} of {countText(limit)}
      </span>
      <Meter value={percent} label={label} tone={percent >= nearPercent ? "warn" : "work"} />
    </span>
  );
}

const columns: readonly Column<Project>[] = [
  { name: "Project", cell: ({ project_id }) => <Foreign text={project_id} /> },
  { name: "Volumes", cell: ({ quota }) => <Used of={quota.volumes} label="Volumes used" /> },
  { name: "GiB of volumes", cell: ({ quota }) => <Used of={quota.gigabytes} label="GiB of volumes used" /> },
  { name: "Backups", cell: ({ quota }) => <Used of={quota.backups} label="Backups used" /> },
  { name: "GiB of backups", cell: ({ quota }) => <Used of={quota.backup_gigabytes} label="GiB of backups used" /> },
  { name: "Running", cell: ({ running }) => countText(running), isNumber: true },
  { name: "Waiting", cell: ({ waiting }) => countText(waiting), isNumber: true },
  {
    name: "Late",
    cell: ({ late }) => (late > 0 ? <Status state={countText(late)} tone={toneOf("late")} /> : "0"),
    isNumber: true,
  },
  {
    name: "Never backed up",
    cell: ({ never }) => (never > 0 ? <Status state={countText(never)} tone={toneOf("never")} /> : "0"),
    isNumber: true,
  },
  { name: "Stored", cell: ({ stored_bytes }) => <Bytes bytes={stored_bytes} />, isNumber: true },
];

/** Who uses how much, and whose volumes are not protected. */
export function ProjectsPage() {
  const filters = useFilters();
  const query = useQuery({ ...route("GET /ops/projects", { query: filters.values }, { everyMs: 10_000 }), ...kept });
  return (
    <>
      <PageHead title="Projects" facts="Those that store most first; at most ten seconds old." />
      <Loaded query={query}>
        {({ projects, next }) => (
          <>
            <DataTable
              caption="Projects"
              columns={columns}
              rows={projects}
              keyOf={({ project_id }) => project_id}
              empty={<p>No project has anything here yet.</p>}
            />
            <Pages filters={filters} next={next} />
          </>
        )}
      </Loaded>
    </>
  );
}
