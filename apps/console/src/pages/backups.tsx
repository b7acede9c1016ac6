import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ListedBackup } from "@tephra/wire";
import { useState } from "react";
import { ask, call } from "../data/api.ts";
import { backupPath } from "../data/cinder.ts";
import { kept, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { useFilters, useParameter } from "../parts/address.ts";
import { Bulk, type Deed } from "../parts/bulk.tsx";
import { Choice, Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { countText } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Command, Foreign } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

const states = ["available", "creating", "restoring", "error", "error_deleting", "deleting"] as const;
const ages = { week: "proven within 7 days", month: "within 30 days", older: "longer ago", never: "never proven" };
const orders = {
  newest: "newest first",
  oldest: "oldest first",
  as_of: "by their moment",
  name: "by name",
  size: "largest first",
  stored: "most stored first",
};
const pageSizes = [50, 100, 500];

const columns: readonly Column<ListedBackup>[] = [
  { name: "State", cell: ({ status, damage }) => <Status state={damage === null ? status : "damaged"} /> },
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
    cell: ({ volume: { id, name, gone } }) =>
      gone ? (
        <span className="second">{id.slice(0, 8)}, gone</span>
      ) : (
        <Link to="/volumes/$id" params={{ id }}>
          <Foreign text={name} empty={id.slice(0, 8)} />
        </Link>
      ),
  },
  { name: "Kind", cell: ({ kind, chain_depth }) => (kind === "full" ? "full" : `incremental, ${chain_depth} below`) },
  { name: "As of", cell: ({ data_timestamp }) => <Moment at={data_timestamp} /> },
  { name: "Size", cell: ({ bytes }) => <Bytes bytes={bytes} />, isNumber: true },
  { name: "Stored", cell: ({ stored_bytes }) => <Bytes bytes={stored_bytes} />, isNumber: true },
  { name: "Repository", cell: ({ repository }) => <Foreign text={repository} /> },
  {
    name: "Proven",
    cell: ({ sound, proof }) =>
      sound ? <Age at={proof?.at} /> : <span className="tone-bad">a member of its chain is damaged</span>,
  },
  { name: "Kept until", cell: ({ keep_until }) => <Age at={keep_until} /> },
  { name: "Reason", cell: ({ fail_reason }) => <Foreign text={fail_reason} empty="—" /> },
];

/** All backups, as they are filtered and ordered; many of them can be deleted or verified at once. */
export function BackupsPage() {
  const may = useMay();
  const { project_id } = useSession();
  const filters = useFilters(
    "status",
    "proof",
    "damage",
    "orphan",
    "q",
    "repository",
    "volume_id",
    "policy_id",
    "from",
    "to",
  );
  const sort = useParameter("sort") ?? "newest";
  const limit = useParameter("limit") ?? "100";
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const asked = { ...filters.values, sort, limit, facets: "1" };
  const query = useQuery({ ...route("GET /ops/backups", { query: asked }, { on: ["backup"] }), ...kept });
  const deeds: Deed[] = [
    ...(may("ops:verify")
      ? [
          {
            label: "Verify",
            effects: <p>Each is verified quickly: its objects are there, and of the right length.</p>,
            run: (id: string) => call("POST /ops/backups/:id/verify", { params: { id }, body: { mode: "quick" } }),
          },
        ]
      : []),
    ...(may("backup:delete")
      ? [
          {
            label: "Delete",
            isDanger: true,
            effects: (
              <p>
                All of them are deleted, four at a time. Those that others build on, that are held or busy are refused,
                and named. Where a repository has a deletion delay, they can be brought back for that long.
              </p>
            ),
            run: (id: string) => ask("DELETE", backupPath(project_id, id)),
          },
        ]
      : []),
  ];
  const toggle = (id: string): void =>
    setChosen((now) => {
      const next = new Set(now);
      if (!next.delete(id)) next.add(id);
      return next;
    });
  const choosing: Column<ListedBackup> = {
    name: "Chosen",
    cell: ({ id, name }) => (
      <input type="checkbox" aria-label={`Choose ${name ?? id}`} checked={chosen.has(id)} onChange={() => toggle(id)} />
    ),
  };
  return (
    <>
      <PageHead title="Backups" facts={query.data?.total != null && `${countText(query.data.total)} match.`} />
      <FilterBar
        filters={filters}
        of={{ name: "status", label: "State of backups", states, counts: query.data?.facets?.status }}
        beside={[
          {
            name: "proof",
            label: "When they were proven",
            states: Object.keys(ages),
            words: ages,
            counts: query.data?.facets?.proof,
          },
          { name: "damage", label: "Damage", states: ["1"], words: { 1: "damaged" } },
          { name: "orphan", label: "Volume", states: ["1"], words: { 1: "volume gone" } },
        ]}
        texts={[
          ["q", "Name, or the start of an id"],
          ["repository", "Repository"],
        ]}
      />
      <Loaded query={query} lines={10}>
        {({ backups, next }) => (
          <>
            <div className="filters">
              <Choice
                label="Order"
                value={sort}
                of={Object.entries(orders)}
                onChange={(value) => filters.set({ sort: value })}
              />
              <Choice
                label="Rows"
                value={limit}
                of={pageSizes.map((rows) => [String(rows), String(rows)])}
                onChange={(value) => filters.set({ limit: value })}
              />
              {deeds.length > 0 && backups.length > 0 && (
                <button
                  type="button"
                  className="button is-quiet"
                  onClick={() => setChosen(new Set(backups.map(({ id }) => id)))}
                >
                  Choose all shown
                </button>
              )}
            </div>
            <Bulk rows={backups.filter(({ id }) => chosen.has(id))} deeds={deeds} clear={() => setChosen(new Set())} />
            <DataTable
              caption="Backups"
              columns={deeds.length > 0 ? [choosing, ...columns] : columns}
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
            <Pages filters={filters} next={next} />
          </>
        )}
      </Loaded>
    </>
  );
}
