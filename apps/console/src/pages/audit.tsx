import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { AuditEntry } from "@tephra/wire";
import { kept, route } from "../data/queries.ts";
import { useAddress } from "../parts/address.ts";
import { NoMatch, Pages } from "../parts/filter.tsx";
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

const filters = [
  ["resource_id", "Id of what was changed"],
  ["user_id", "User"],
  ["request_id", "Request"],
] as const;

/** Who changed the status of what. */
export function AuditPage() {
  const [search, change] = useAddress();
  const { resource_id, user_id, request_id, marker } = search;
  const query = useQuery({
    ...route(
      "GET /ops/audit",
      { query: { resource_id, user_id, request_id, marker, limit: 100 } },
      { on: ["any change"] },
    ),
    ...kept,
  });
  const isFiltered = Boolean(resource_id || user_id || request_id);
  const clear = () => change({ resource_id: undefined, user_id: undefined, request_id: undefined, marker: undefined });
  return (
    <>
      <PageHead title="Audit" facts="Every change of a status, newest first." />
      <form
        className="filters"
        onSubmit={(event) => {
          event.preventDefault();
          const form = new FormData(event.currentTarget);
          const texts = filters.map(([name]) => [name, String(form.get(name) ?? "").trim() || undefined]);
          change({ ...Object.fromEntries(texts), marker: undefined });
        }}
      >
        {filters.map(([name, label]) => (
          <label key={name} className="field">
            {label}
            <input name={name} defaultValue={search[name] ?? ""} spellCheck={false} />
          </label>
        ))}
        <button type="submit" className="button is-quiet">
          Filter
        </button>
      </form>
      <Loaded query={query} lines={10}>
        {({ audit }) => (
          <>
            <DataTable
              caption="Changes of statuses"
              columns={columns}
              rows={audit}
              keyOf={({ id }) => id}
              empty={
                isFiltered || marker ? (
                  <NoMatch what="No entry matches." onClear={clear} />
                ) : (
                  <p>Nothing has changed yet.</p>
                )
              }
            />
            <Pages
              isFirst={!marker}
              next={audit.length === 100 ? (audit.at(-1)?.id ?? null) : null}
              onGo={(to) => change({ marker: to })}
            />
          </>
        )}
      </Loaded>
    </>
  );
}
