import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { AuditEntry } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { shown } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Foreign, Id } from "../parts/texts.tsx";
import { Moment } from "../parts/time.tsx";

function Subject({ resource, resource_id: id }: AuditEntry) {
  const text = (
    <>
      {resource} <Id id={id} />
    </>
  );
  if (resource === "volume") {
    return (
      <Link to="/volumes/$id" params={{ id }}>
        {text}
      </Link>
    );
  }
  if (resource === "backup") {
    return (
      <Link to="/backups/$id" params={{ id }}>
        {text}
      </Link>
    );
  }
  if (resource === "operation") {
    return (
      <Link to="/operations/$id" params={{ id }}>
        {text}
      </Link>
    );
  }
  return text;
}

const columns: readonly Column<AuditEntry>[] = [
  { name: "When", cell: ({ at }) => <Moment at={at} /> },
  { name: "What", cell: (row) => <Subject {...row} /> },
  { name: "From", cell: ({ from }) => (from === null ? "—" : shown(from)) },
  { name: "To", cell: ({ to }) => <Status state={to} /> },
  { name: "Who", cell: ({ user_id, worker_id, actor }) => <Foreign text={worker_id ?? user_id} empty={actor} /> },
  { name: "Request", cell: ({ request_id }) => <Id id={request_id?.replace(/^req-/, "")} /> },
  { name: "Reason", cell: ({ reason }) => <Foreign text={reason} empty="—" /> },
];

const texts = [
  ["resource_id", "Id of what was changed"],
  ["user_id", "User"],
  ["request_id", "Request"],
] as const;
const pageRows = 100;

/** Who changed the status of what. */
export function AuditPage() {
  const filters = useFilters(...texts.map(([name]) => name));
  const query = useQuery({
    ...route("GET /ops/audit", { query: { ...filters.values, limit: pageRows } }, { on: ["any change"] }),
    ...kept,
  });
  return (
    <>
      <PageHead title="Audit" facts="Every change of a status, newest first." />
      <FilterBar filters={filters} texts={texts} />
      <Loaded query={query} lines={10}>
        {({ audit }) => (
          <>
            <DataTable
              caption="Changes of statuses"
              columns={columns}
              rows={audit}
              keyOf={({ id }) => id}
              empty={
                <Empty filters={filters} what="No entry matches.">
                  <p>Nothing has changed yet.</p>
                </Empty>
              }
            />
            <Pages filters={filters} next={audit.length === pageRows ? audit.at(-1)?.id : null} />
          </>
        )}
      </Loaded>
    </>
  );
}
