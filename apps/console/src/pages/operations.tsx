import { useQuery } from "@tanstack/react-query";
import { kept, ofOperations, route } from "../data/queries.ts";
import { useAddress } from "../parts/address.ts";
import { NoMatch, StateChips } from "../parts/filter.tsx";
import { OperationsTable } from "../parts/operations-table.tsx";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";

const states = ["running", "queued", "failed", "succeeded", "cancelled"] as const;

/** What runs, what waits, and what has ended. */
export function OperationsPage() {
  const [{ state, volume_id, backup_id }, change] = useAddress();
  const query = useQuery({
    ...route("GET /ops/operations", { query: { state, volume_id, backup_id } }, ofOperations),
    ...kept,
  });
  const clear = () => change({ state: undefined, volume_id: undefined, backup_id: undefined });
  return (
    <>
      <PageHead title="Operations" facts="Everything that was asked for, newest first." />
      <StateChips
        label="State of operations"
        states={states}
        value={state}
        onChange={(picked) => change({ state: picked })}
      />
      <Loaded query={query} lines={10}>
        {({ operations }) => (
          <OperationsTable
            rows={operations}
            empty={
              state || volume_id || backup_id ? (
                <NoMatch what="No operation matches." onClear={clear} />
              ) : (
                <p>Nothing was asked for yet.</p>
              )
            }
          />
        )}
      </Loaded>
    </>
  );
}
