import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { QueueState, WorkerCard } from "@tephra/wire";
import { useState } from "react";
import { ask } from "../data/api.ts";
import { utc } from "../data/cinder.ts";
import { route } from "../data/queries.ts";
import { type Service, servicesPath, servicesQuery } from "../data/services.ts";
import { useMay, useSession } from "../data/session.tsx";
import { Action, ReasonField } from "../parts/action.tsx";
import { countText, durationText, shown } from "../parts/format.ts";
import { PageHead, Panel } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Command, Foreign, Id } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

function Switch({ service }: { service: Service }) {
  const { project_id } = useSession();
  const [reason, setReason] = useState("");
  const { binary, host } = service;
  const change = (action: string, more: object = {}) =>
    ask("PUT", `${servicesPath(project_id)}/${action}`, { binary, host, ...more });
  if (service.status === "disabled") {
    return <Action label="Enable" run={() => change("enable")} done={`${host} gets work again.`} />;
  }
  return (
    <Action
      label="Disable"
      effects={
        <>
          <p>The host gets no new work. What it does it finishes.</p>
          <ReasonField value={reason} onChange={setReason} />
        </>
      }
      run={() => change("disable-log-reason", { disabled_reason: reason || "no reason given" })}
      done={`${host} gets no new work.`}
    />
  );
}

const columns: readonly Column<Service>[] = [
  {
    name: "State",
    cell: ({ state, status }) => (
      <Status state={status === "disabled" ? "disabled" : state === "up" ? "live" : "down"} />
    ),
  },
  { name: "Service", cell: ({ binary }) => shown(binary) },
  { name: "Host", cell: ({ host }) => <Foreign text={host} /> },
  { name: "Zone", cell: ({ zone }) => <Foreign text={zone} /> },
  { name: "Heard of", cell: ({ updated_at }) => <Age at={utc(updated_at)} />, isNumber: true },
  { name: "Reason", cell: ({ disabled_reason }) => <Foreign text={disabled_reason} empty="—" /> },
];

function Does({ tasks }: WorkerCard) {
  if (tasks.length === 0) return <span className="second">nothing</span>;
  return (
    <span className="stack">
      {tasks.map(({ operation_id: id, operation_kind, kind, ordinal, bytes_done }) => (
        <Link key={`${id} ${kind} ${ordinal}`} to="/operations/$id" params={{ id }}>
          {operation_kind}, {kind} {ordinal}
          {bytes_done > 0 && (
            <>
              {" "}
              <Bytes bytes={bytes_done} />
            </>
          )}
        </Link>
      ))}
    </span>
  );
}

/** What a worker's tasks may need, and why it has not all of that, in its own words. */
function Reaches({ reaches, unreachable }: WorkerCard) {
  return (
    <span className="stack">
      <span>{reaches.map(shown).join(", ") || "nothing"}</span>
      {Object.entries(unreachable).map(([place, why]) => (
        <span key={place} className="tone-bad">
          not {shown(place)}: {shown(why)}
        </span>
      ))}
    </span>
  );
}

const workerColumns = (isMixed: boolean): readonly Column<WorkerCard>[] => [
  { name: "State", cell: ({ state }) => <Status state={state} /> },
  { name: "Worker", cell: ({ id }) => <Foreign text={id} /> },
  {
    name: "Version",
    cell: ({ version }) =>
      isMixed ? <Status state={version ?? "an older one"} tone="warn" /> : shown(version ?? "an older one"),
  },
  { name: "Slots", cell: ({ tasks, slots }) => `${tasks.length} of ${slots}`, isNumber: true },
  { name: "Does", cell: Does },
  { name: "Reaches", cell: Reaches },
  { name: "Memory", cell: ({ rss_bytes }) => <Bytes bytes={rss_bytes} />, isNumber: true },
  { name: "Heard of", cell: ({ heartbeat_at }) => <Age at={heartbeat_at} />, isNumber: true },
];

const projectColumns: readonly Column<QueueState["postgres"]["by_project"][number]>[] = [
  { name: "Project", cell: ({ project_id }) => <Id id={project_id} /> },
  { name: "Waiting", cell: ({ ready }) => countText(ready), isNumber: true },
  { name: "Handed over", cell: ({ dispatched }) => countText(dispatched), isNumber: true },
  { name: "Running", cell: ({ running }) => countText(running), isNumber: true },
];

function Workers() {
  const query = useQuery(route("GET /ops/workers"));
  return (
    <Panel title="Workers" facts="Those heard of within the last hour.">
      <Loaded query={query}>
        {({ workers }) => (
          <DataTable
            caption="Workers"
            columns={workerColumns(new Set(workers.map(({ version }) => version)).size > 1)}
            rows={workers}
            keyOf={({ id }) => id}
            empty={
              <>
                <p>No worker was heard of.</p>
                <Command text="npm start" />
              </>
            }
          />
        )}
      </Loaded>
    </Panel>
  );
}

/** What waits, of whom, and whether Redis has a job for whatever was handed to it. */
function Queue() {
  const query = useQuery(route("GET /ops/queue"));
  return (
    <Panel title="Queue">
      <Loaded query={query}>
        {({ queue: { postgres, redis, drift } }) => (
          <>
            <p>
              {countText(postgres.by_state.ready)} wait · {countText(postgres.by_state.dispatched)} handed to a worker ·{" "}
              {countText(postgres.by_state.running)} run
              {postgres.oldest_seconds > 0 && ` · the oldest waits for ${durationText(postgres.oldest_seconds)}`}
            </p>
            {postgres.oldest && (
              <p>
                <Link to="/operations/$id" params={{ id: postgres.oldest.operation.id }}>
                  {postgres.oldest.operation.kind}
                </Link>{" "}
                has waited longest. {postgres.oldest.why && shown(postgres.oldest.why.text)}
              </p>
            )}
            {postgres.by_project.length > 0 && (
              <DataTable
                caption="Tasks of each project"
                columns={projectColumns}
                rows={postgres.by_project}
                keyOf={(row) => row.project_id}
                empty={null}
              />
            )}
            <p>
              {drift.agrees ? (
                <Status
                  state={`Redis agrees: ${countText(drift.dispatched)} handed over, ${countText(drift.jobs ?? 0)} jobs`}
                  tone="ok"
                />
              ) : redis.reachable ? (
                <Status
                  state={`${countText(drift.overdue)} tasks were handed to Redis and have not arrived`}
                  tone="warn"
                />
              ) : (
                <Status state="Redis does not answer: work goes on without it" tone="warn" />
              )}
            </p>
          </>
        )}
      </Loaded>
    </Panel>
  );
}

/** Who does the work. */
export function WorkersPage() {
  const may = useMay();
  const { project_id } = useSession();
  const query = useQuery(servicesQuery(project_id));
  const shownColumns = may("volume_extension:services:update")
    ? [...columns, { name: "Do", cell: (row: Service) => <Switch service={row} /> }]
    : columns;
  return (
    <>
      <PageHead
        title="Workers & queue"
        facts="The processes that do the work, and the hosts that they are on."
        actions={
          <a className="button" href="/ops/queues" target="_blank" rel="noreferrer">
            Queue board
          </a>
        }
      />
      {may("ops:workers") && <Workers />}
      {may("ops:queues") && <Queue />}
      <Panel title="Hosts" facts="What each of them offers; one that is disabled takes no new work.">
        <Loaded query={query}>
          {({ services }) => (
            <DataTable
              caption="Services"
              columns={shownColumns}
              rows={services}
              keyOf={({ binary, host }) => `${binary} ${host}`}
              empty={<p>No worker ever came.</p>}
            />
          )}
        </Loaded>
      </Panel>
    </>
  );
}
