import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { backupsPath, type CinderBackup, utc } from "../data/cinder.ts";
import { kept, path } from "../data/queries.ts";
import { useSession } from "../data/session.tsx";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { countText } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign, Id } from "../parts/texts.tsx";
import { Moment } from "../parts/time.tsx";

const states = ["available", "creating", "restoring", "error", "error_deleting", "deleting"] as const;
const pageRows = 100;

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
  {
    name: "Volume",
    cell: ({ volume_id }) => (
      <Link to="/volumes/$id" params={{ id: volume_id }}>
        <Id id={volume_id} />
      </Link>
    ),
  },
  { name: "Kind", cell: ({ is_incremental }) => (is_incremental ? "incremental" : "full") },
  { name: "As of", cell: ({ data_timestamp, created_at }) => <Moment at={utc(data_timestamp ?? created_at)} /> },
  { name: "Size", cell: ({ size }) => `${countText(size)} GiB`, isNumber: true },
  { name: "Objects", cell: ({ object_count }) => countText(object_count), isNumber: true },
  { name: "Reason", cell: ({ fail_reason }) => <Foreign text={fail_reason} empty="—" /> },
];

/** All backups, newest first. */
export function BackupsPage() {
  const { project_id } = useSession();
  const filters = useFilters("status", "volume_id");
  const asked = { ...filters.values, sort: "created_at:desc", limit: String(pageRows), all_tenants: "1" };
  const query = useQuery({
    ...path<{ backups: CinderBackup[] }>(backupsPath(project_id, asked), { on: ["backup"] }),
    ...kept,
  });
  return (
    <>
      <PageHead title="Backups" facts="Newest first." />
      <FilterBar filters={filters} of={{ name: "status", label: "State of backups", states }} />
      <Loaded query={query} lines={10}>
        {({ backups }) => (
          <>
            <DataTable
              caption="Backups"
              columns={columns}
              rows={backups}
              keyOf={({ id }) => id}
              hrefOf={({ id }) => `/backups/${id}`}
              empty={
                <Empty filters={filters} what="No backup matches.">
                  <p>There is no backup yet.</p>
                  <Command text="tephra backup create VOLUME --name monday --wait" />
                </Empty>
              }
            />
            <Pages filters={filters} next={backups.length === pageRows ? backups.at(-1)?.id : null} />
          </>
        )}
      </Loaded>
    </>
  );
}
