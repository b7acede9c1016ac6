import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Policy } from "@tephra/wire";
import { route } from "../data/queries.ts";
import { shown } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { policyText } from "../parts/policy-words.ts";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Command, Foreign, Id } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const columns: readonly Column<Policy>[] = [
  {
    name: "State",
    cell: ({ enabled }) => <Status state={enabled ? "active" : "disabled"} />,
  },
  {
    name: "Policy",
    cell: ({ id, name }) => (
      <Link to="/policies/$id" params={{ id }}>
        <Foreign text={name} />
      </Link>
    ),
  },
  { name: "Rule", cell: (row) => shown(policyText(row)) },
  { name: "Next", cell: ({ next_at }) => <Age at={next_at} />, isNumber: true },
  { name: "Of", cell: ({ project_id }) => (project_id === null ? "every project" : <Id id={project_id} />) },
];

/** How volumes are backed up by themselves. */
export function PoliciesPage() {
  const query = useQuery(route("GET /ops/policies"));
  return (
    <>
      <PageHead title="Policies" facts="When volumes are backed up by themselves, and what is kept." />
      <Loaded query={query}>
        {({ policies }) => (
          <DataTable
            caption="Policies"
            columns={columns}
            rows={policies}
            keyOf={({ id }) => id}
            hrefOf={({ id }) => `/policies/${id}`}
            empty={
              <>
                <p>Nothing is backed up by itself yet.</p>
                <Command text="tephra policy create nightly --cron '0 2 * * *' --keep-daily 7 --keep-weekly 4" />
              </>
            }
          />
        )}
      </Loaded>
    </>
  );
}
