import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Operation, OperationDetails } from "@tephra/wire";
import { useState } from "react";
import { ask } from "../data/api.ts";
import { getLiveness } from "../data/liveness.ts";
import { route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { bytesText, countText, leftText, quoted, rateText, shown, spanText } from "../parts/format.ts";
import { OperationMeter } from "../parts/operations-table.tsx";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { RangesPanel } from "../parts/ranges.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status, ToneIcon } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, CopyButton, Foreign, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";
import { toneOf } from "../parts/words.ts";

function Result({ result }: { result: NonNullable<Operation["result"]> }) {
  return (
    <Panel title="Result">
      <pre className="json">{shown(JSON.stringify(result, null, 2)).replaceAll("\\u000a", "\n")}</pre>
    </Panel>
  );
}

/** Why it waits, or is not faster. */
function Why({ why }: { why: NonNullable<OperationDetails["why"]> }) {
  return (
    <Panel title="Why" facts={<code>{why.code}</code>}>
      <p>{shown(why.text)}</p>
      {why.since && (
        <p>
          Since <Age at={why.since} />
        </p>
      )}
    </Panel>
  );
}

function Body({ row }: { row: OperationDetails }) {
  return (
    <>
      {row.why && <Why why={row.why} />}
      {row.fail_reason && (
        <div className="fault" role="note">
          <strong>It has failed.</strong>
          <p>{shown(row.fail_reason)}</p>
        </div>
      )}
      <Panel title="Progress" facts={`${row.tasks_done} of ${row.tasks_total} tasks`}>
        <Phases of={row.phases} />
        <div className="progress-line">
          <OperationMeter row={row} />
          <span>{rateText(row.rate_bytes_per_second)}</span>
          <span>{leftText(row.seconds_left)}</span>
        </div>
        <Facts
          of={[
            ["Bytes done", <Bytes key="done" bytes={row.bytes_done} />],
            ["of", <Bytes key="total" bytes={row.bytes_total} />],
            ["Stored", <Bytes key="stored" bytes={row.bytes_stored} />],
            ["Copied twice", <Bytes key="twice" bytes={row.bytes_copied_twice} />],
            ["Attempts", row.attempts],
          ]}
        />
      </Panel>
      <RangesPanel id={row.id} isMoving={!isEnded(row)} />
      {row.tries.length > 0 && (
        <Panel title="Tries" facts="Begun more than once, or failed.">
          <TaskTable caption="Tries" rows={row.tries} />
        </Panel>
      )}
      <Tasks id={row.id} />
      <Panel title="What and whose">
        <Facts
          of={[
            [
              "Volume",
              row.volume_id && (
                <Link key="volume" to="/volumes/$id" params={{ id: row.volume_id }}>
                  <Foreign text={row.volume_name} empty={row.volume_id.slice(0, 8)} />
                </Link>
              ),
            ],
            [
              "Backup",
              row.backup_id && (
                <Link key="backup" to="/backups/$id" params={{ id: row.backup_id }}>
                  <Id id={row.backup_id} />
                </Link>
              ),
            ],
            [
              "Retried as",
              row.retried_as && (
                <Link key="retried" to="/operations/$id" params={{ id: row.retried_as }}>
                  <Id id={row.retried_as} />
                </Link>
              ),
            ],
            ["Project", <Id key="project" id={row.project_id} />],
            ["Asked for by", <Foreign key="user" text={row.user_id} />],
            ["Request", <Foreign key="request" text={row.request_id} />],
            ["At work on it", row.workers.map(shown).join(", ") || null],
            ["Asked for", <Moment key="asked" at={row.created_at} />],
            ["Begun", row.started_at && <Moment key="begun" at={row.started_at} />],
            ["Ended", row.finished_at && <Moment key="ended" at={row.finished_at} />],
            ["Last change", <Age key="changed" at={row.updated_at} />],
          ]}
        />
      </Panel>
      {row.result && <Result result={row.result} />}
    </>
  );
}

/** Its parts in their order, and how long each took. */
function Phases({ of }: { of: OperationDetails["phases"] }) {
  if (of.length === 0) return null;
  return (
    <ol className="phases" aria-label="Phases">
      {of.map(({ name, started_at, finished_at }) => {
        const state = finished_at !== null ? "succeeded" : started_at !== null ? "running" : "queued";
        const tookMs = finished_at && started_at ? Date.parse(finished_at) - Date.parse(started_at) : null;
        return (
          <li key={name}>
            <ToneIcon tone={toneOf(state)} /> {name} {tookMs !== null && <b>{spanText(tookMs)}</b>}
            {state === "running" && <b>now</b>}
          </li>
        );
      })}
    </ol>
  );
}

type Task = OperationDetails["tries"][number];

const taskColumns: readonly Column<Task>[] = [
  { name: "Task", cell: ({ kind, ordinal }) => `${kind} ${ordinal}` },
  { name: "State", cell: ({ state }) => <Status state={state} /> },
  {
    name: "Range",
    cell: ({ range_offset, range_length }) =>
      range_length === 0 ? "—" : `${bytesText(range_offset)} + ${bytesText(range_length)}`,
  },
  { name: "Worker", cell: ({ worker_id }) => <Foreign text={worker_id} empty="—" /> },
  { name: "Try", cell: (task) => countText(task.try), isNumber: true },
  { name: "Bytes", cell: ({ bytes_done }) => <Bytes bytes={bytes_done} />, isNumber: true },
  { name: "Rate", cell: ({ rate_bytes_per_second: rate }) => rateText(rate), isNumber: true },
  { name: "Reason", cell: ({ reason }) => <Foreign text={reason} empty="—" /> },
];

function TaskTable({ caption, rows }: { caption: string; rows: readonly Task[] }) {
  return (
    <DataTable
      caption={caption}
      columns={taskColumns}
      rows={rows}
      keyOf={({ kind, ordinal }) => `${kind} ${ordinal}`}
      empty="Its tasks are forgotten."
    />
  );
}

/** All of its tasks, or the first 500: asked for when somebody looks. */
function Tasks({ id }: { id: string }) {
  const [isOpen, setOpen] = useState(false);
  const query = useQuery({
    ...route(
      "GET /ops/operations/:id",
      { params: { id }, query: { tasks: "1" } },
      { on: ["operation"], everyMs: 5_000 },
    ),
    enabled: isOpen,
  });
  return (
    <Panel
      title="Tasks"
      facts={
        <button type="button" className="button is-quiet" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {isOpen ? "Fold" : "Show"}
        </button>
      }
    >
      {isOpen && (
        <Loaded query={query}>{({ operation: { tasks = [] } }) => <TaskTable caption="Tasks" rows={tasks} />}</Loaded>
      )}
    </Panel>
  );
}

/** What can be done about an operation, by its name in the API. */
const deeds: Readonly<
  Record<string, { of: readonly string[]; label: string; effects: string; done: string; isDanger?: boolean }>
> = {
  cancel: {
    of: ["queued", "running"],
    label: "Cancel",
    effects:
      "It ends, and what it has read is free again. A backup that it was making is in error then, and so is the target of a restore.",
    done: "It is cancelled.",
    isDanger: true,
  },
  retry: {
    of: ["failed"],
    label: "Retry",
    effects: "A new operation does the same again. A backup gets a new one beside that which has failed.",
    done: "It was asked for again.",
  },
};

function Actions({ id, state, actions }: OperationDetails) {
  const may = useMay();
  return actions.map(({ name, why }) => {
    const deed = deeds[name];
    if (!deed?.of.includes(state) || !may(`ops:operation:${name}`)) return null;
    const { effects, of: _, ...more } = deed;
    return (
      <Action
        key={name}
        {...more}
        why={why}
        effects={<p>{effects}</p>}
        command={`tephra operation ${name} ${quoted(id)}`}
        run={() => ask("POST", `/ops/operations/${encodeURIComponent(id)}/${name}`, {})}
      />
    );
  });
}

const movingMs = 2_000;
const isEnded = (row: Operation | undefined): boolean =>
  row !== undefined && !["queued", "running"].includes(row.state);

export function OperationPage() {
  const id = useId();
  const query = useQuery({
    ...route("GET /ops/operations/:id", { params: { id } }, { on: [] }),
    // Why it is not faster is told by no event.
    refetchInterval: ({ state }) =>
      isEnded(state.data?.operation) || getLiveness().kind === "paused" ? false : movingMs,
  });
  const row = query.data?.operation;
  return (
    <>
      <PageHead
        title={row?.kind ?? "Operation"}
        actions={row && <Actions {...row} />}
        facts={
          <>
            {row && <Status state={row.state} />} <code>{shown(id)}</code>{" "}
            <CopyButton text={id} label="Copy the id of the operation" />
          </>
        }
      />
      <Loaded query={query}>{({ operation }) => <Body row={operation} />}</Loaded>
    </>
  );
}
