import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Operation, OperationDetails } from "@tephra/wire";
import { ask } from "../data/api.ts";
import { getLiveness } from "../data/liveness.ts";
import { route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { leftText, quoted, rateText, shown } from "../parts/format.ts";
import { OperationMeter } from "../parts/operations-table.tsx";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { RangesPanel } from "../parts/ranges.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { Bytes, CopyButton, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

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
      <Panel title="What and whose">
        <Facts
          of={[
            [
              "Volume",
              row.volume_id && (
                <Link key="volume" to="/volumes/$id" params={{ id: row.volume_id }}>
                  <Id id={row.volume_id} />
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
            ["Begun", <Moment key="begun" at={row.created_at} />],
            ["Last change", <Age key="changed" at={row.updated_at} />],
          ]}
        />
      </Panel>
      {row.result && <Result result={row.result} />}
    </>
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
