import { useQuery } from "@tanstack/react-query";
import { kept, ofOperations, route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar, Pages } from "../parts/filter.tsx";
import { OperationsTable } from "../parts/operations-table.tsx";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";

const states = ["running", "queued", "failed", "succeeded", "cancelled"] as const;

const texts = [
  ["kind", "Kind, such as backup-create"],
  ["repository", "Repository"],
  ["request_id", "Request"],
] as const;
/** For those who see all projects. */
const ofAll = [
  ["project_id", "Project"],
  ["worker_id", "Worker at work on it"],
] as const;
const names = [
  ...["state", "stuck", "volume_id", "backup_id", "group_id", "parent_id", "from", "to"],
  ...[...texts, ...ofAll].map(([name]) => name),
];

/** What runs, what waits, and what has ended. */
export function OperationsPage() {
  const seesAll = useMay()("ops:workers");
  const filters = useFilters(...names);
  const query = useQuery({ ...route("GET /ops/operations", { query: filters.values }, ofOperations), ...kept });
  return (
    <>
      <PageHead title="Operations" facts="Everything that was asked for, newest first." />
      <FilterBar
        filters={filters}
        of={{ name: "state", label: "State of operations", states }}
        beside={[{ name: "stuck", label: "Whether they move", states: ["1"], words: { 1: "stuck" } }]}
        texts={seesAll ? [...texts, ...ofAll] : texts}
      />
      <Loaded query={query} lines={10}>
        {({ operations, next }) => (
          <>
            <OperationsTable
              rows={operations}
              empty={
                <Empty filters={filters} what="No operation matches.">
                  <p>Nothing was asked for yet.</p>
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
