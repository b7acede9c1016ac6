import { useQuery } from "@tanstack/react-query";
import type { Notification } from "@tephra/wire";
import { useState } from "react";
import { call } from "../data/api.ts";
import { kept, route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useFilters } from "../parts/address.ts";
import { Bulk, type Deed } from "../parts/bulk.tsx";
import { FilterBar } from "../parts/filter.tsx";
import { shown } from "../parts/format.ts";
import { PageHead } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Foreign } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const states = ["dead", "pending", "delivered"] as const;

const columns: readonly Column<Notification>[] = [
  { name: "State", cell: ({ state }) => <Status state={state} /> },
  { name: "Event", cell: ({ event_type }) => shown(event_type) },
  { name: "Target", cell: ({ target }) => <Foreign text={target} /> },
  { name: "Attempts", cell: ({ attempts }) => attempts, isNumber: true },
  { name: "Made", cell: ({ created_at }) => <Age at={created_at} />, isNumber: true },
  { name: "Next", cell: ({ next_attempt_at }) => <Age at={next_attempt_at} />, isNumber: true },
  { name: "Last error", cell: ({ last_error }) => <Foreign text={last_error} empty="—" /> },
  {
    name: "Do",
    cell: ({ id, state }) =>
      state === "dead" ? (
        <Action
          label="Retry"
          run={() => call("POST /ops/notifications/:id/retry", { params: { id } })}
          done="It is delivered anew, from its first attempt."
        />
      ) : (
        "—"
      ),
  },
];

/** Only admins retry: others have no such column. */
const columnsOf = (mayRetry: boolean): readonly Column<Notification>[] =>
  mayRetry ? columns : columns.filter(({ name }) => name !== "Do");

const retryAll: Deed = {
  label: "Retry",
  effects: <p>Each is delivered anew, from its first attempt.</p>,
  run: (id) => call("POST /ops/notifications/:id/retry", { params: { id } }),
};

/** Deliveries of events to their targets. */
export function NotificationsPage() {
  const mayRetry = useMay()("ops:notifications:retry");
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const filters = useFilters("state");
  const { state = "dead" } = filters.values;
  const query = useQuery({ ...route("GET /ops/notifications", { query: { state } }), ...kept });
  return (
    <>
      <PageHead title="Notifications" facts="Deliveries of events, newest first; dead ones were given up." />
      <FilterBar filters={filters} of={{ name: "state", label: "State of deliveries", states, initial: "dead" }} />
      <Loaded query={query}>
        {({ notifications }) => (
          <>
            {mayRetry && state === "dead" && notifications.length > 1 && (
              <div className="filters">
                <button
                  type="button"
                  className="button is-quiet"
                  onClick={() => setChosen(notifications.map(({ id }) => id))}
                >
                  Choose all shown
                </button>
              </div>
            )}
            <Bulk
              rows={notifications
                .filter(({ id }) => chosen.includes(id))
                .map(({ id, event_type }) => ({ id, name: event_type }))}
              deeds={[retryAll]}
              clear={() => setChosen([])}
            />
            <DataTable
              caption="Deliveries"
              columns={columnsOf(mayRetry)}
              rows={notifications}
              keyOf={({ id }) => id}
              empty={<p>None is {shown(state)}.</p>}
            />
          </>
        )}
      </Loaded>
    </>
  );
}
