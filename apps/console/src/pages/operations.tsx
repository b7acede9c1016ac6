import { useQuery } from "@tanstack/react-query";
import { kept, ofOperations, route } from "../data/queries.ts";
import { useFilters } from "../parts/address.ts";
import { Empty, FilterBar } from "../parts/filter.tsx";
import { OperationsTable } from "../parts/operations-table.tsx";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";

const states = ["running", "queued", "failed", "succeeded", "cancelled"] as const;

/** What runs, what waits, and what has ended. */
export function OperationsPage() {
  const filters = useFilters("state", "volume_id", "backup_id");
  const { state, volume_id, backup_id } = filters.values;
  const query = useQuery({
    ...route("GET /ops/operations", { query: { state, volume_id, backup_id } }, ofOperations),
    ...kept,
  });
  return (
    <>
      <PageHead title="Operations" facts="Everything that was asked for, newest first." />
      <FilterBar filters={filters} of={{ name: "state", label: "State of operations", states }} />
      <Loaded query={query} lines={10}>
        {({ operations }) => (
          <OperationsTable
            rows={operations}
            empty={
              <Empty filters={filters} what="No operation matches.">
                <p>Nothing was asked for yet.</p>
              </Empty>
            }
          />
        )}
      </Loaded>
    </>
  );
}
