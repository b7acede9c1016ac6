import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { PolicyAssignment, PolicyRun } from "@tephra/wire";
import { call } from "../data/api.ts";
import { freshness, route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { countText, quoted, shown } from "../parts/format.ts";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { policyText } from "../parts/policy-words.ts";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, CopyButton, Foreign, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

const runColumns: readonly Column<PolicyRun>[] = [
  { name: "State", cell: ({ state }) => <Status state={state} /> },
  { name: "Due", cell: ({ due_at }) => <Moment at={due_at} /> },
  { name: "Well", cell: ({ volumes }) => countText(volumes.succeeded), isNumber: true },
  { name: "Failed", cell: ({ volumes }) => countText(volumes.failed), isNumber: true },
  { name: "Unfinished", cell: ({ volumes }) => countText(volumes.waiting + volumes.running), isNumber: true },
  { name: "Finished", cell: ({ finished_at }) => <Age at={finished_at} />, isNumber: true },
  { name: "Reason", cell: ({ reason }) => <Foreign text={reason} empty="—" /> },
];

function Runs({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/policies/:id/runs", { params: { id }, query: { limit: 50 } }));
  return (
    <Panel title="Runs" facts="The last fifty.">
      <Loaded query={query}>
        {({ runs }) => (
          <DataTable
            caption="Runs of this policy"
            columns={runColumns}
            rows={runs}
            keyOf={(run) => run.id}
            empty={<p>It has not run yet.</p>}
          />
        )}
      </Loaded>
    </Panel>
  );
}

const whoColumns: readonly Column<PolicyAssignment>[] = [
  { name: "What", cell: ({ scope }) => scope },
  {
    name: "Id",
    cell: ({ volume_id, instance_id, project_id }) =>
      volume_id ? (
        <Link to="/volumes/$id" params={{ id: volume_id }}>
          <Id id={volume_id} />
        </Link>
      ) : (
        <Id id={instance_id ?? project_id} />
      ),
  },
  { name: "Since", cell: ({ created_at }) => <Age at={created_at} />, isNumber: true },
];

function Assignments({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/policies/:id/assignments", { params: { id }, query: { limit: 500 } }));
  return (
    <Panel title="Assigned to">
      <Loaded query={query}>
        {({ assignments }) => (
          <DataTable
            caption="What the policy is assigned to"
            columns={whoColumns}
            rows={assignments}
            keyOf={(row) => row.id}
            empty={<p>It is assigned to nothing, so it protects nothing.</p>}
          />
        )}
      </Loaded>
    </Panel>
  );
}

const reasons = {
  no_rule: "no rule keeps it",
  failed: "it has failed",
  damaged: "it is damaged",
  parent_damaged: "what it builds on is damaged",
} as const;

function Preview({ id }: { id: string }) {
  const query = useQuery({
    queryKey: ["preview", id],
    queryFn: () => call("POST /ops/policies/:id/preview", { params: { id }, body: {} }),
    ...freshness({ on: ["backup"] }),
  });
  return (
    <Panel title="What retention would do now">
      <Loaded query={query}>
        {({ preview }) => (
          <>
            <p>
              Of {countText(preview.volumes)} volumes {countText(preview.keep.length)} backups stay,{" "}
              {countText(preview.go.length)} go, {countText(preview.squash.length)} chains are squashed,{" "}
              {countText(preview.blocked.length)} stay because others build on them; it frees{" "}
              <Bytes bytes={preview.frees_bytes} />.{preview.truncated && " Not all volumes were looked at."}
            </p>
            <DataTable
              caption="Backups that would go"
              columns={[
                { name: "Goes", cell: ({ backup_id }) => <Id id={backup_id} /> },
                { name: "Of volume", cell: ({ volume_id }) => <Id id={volume_id} /> },
                { name: "Because", cell: ({ reason }) => reasons[reason] ?? reason },
              ]}
              rows={preview.go}
              keyOf={({ backup_id }) => backup_id}
              empty={<p>Nothing would go.</p>}
            />
          </>
        )}
      </Loaded>
    </Panel>
  );
}

/** One policy: its rule, when it is due, what it has done, and what it would delete. */
export function PolicyPage() {
  const id = useId();
  const may = useMay();
  const query = useQuery(route("GET /ops/policies/:id", { params: { id } }));
  const policy = query.data?.policy;
  return (
    <>
      <PageHead
        title={<Foreign text={policy?.name} empty="Policy" />}
        facts={
          <>
            {policy && <Status state={policy.enabled ? "active" : "disabled"} />} <code>{shown(id)}</code>{" "}
            <CopyButton text={id} label="Copy the id of the policy" />
          </>
        }
        actions={
          policy &&
          may("ops:policy:run") && (
            <Action
              label="Run now"
              effects={<p>Everything that the policy is assigned to is backed up now, beside its schedule.</p>}
              command={`tephra policy run ${quoted(policy.name)}`}
              run={() => call("POST /ops/policies/:id/run", { params: { id }, body: {} })}
              done="The policy runs."
            />
          )
        }
      />
      <Loaded query={query}>
        {({ policy: shownPolicy }) => (
          <>
            <Facts
              of={[
                ["Rule", shown(policyText(shownPolicy))],
                ["Repository", <Foreign key="repository" text={shownPolicy.repository} empty="the default one" />],
                ["Priority", shownPolicy.priority],
                [
                  "Verifies",
                  shownPolicy.verify === null
                    ? "nothing"
                    : `${shownPolicy.verify.mode}, every ${shownPolicy.verify.every} runs, ${shownPolicy.verify.sample} %`,
                ],
                ["Target", shownPolicy.target_hours === null ? "the default one" : `${shownPolicy.target_hours} h`],
                [
                  "Next",
                  <span key="next" className="stack">
                    {shownPolicy.next_runs.map((at) => (
                      <Moment key={at} at={at} />
                    ))}
                  </span>,
                ],
              ]}
            />
            <Runs id={id} />
            <Assignments id={id} />
            {shownPolicy.retention && <Preview id={id} />}
          </>
        )}
      </Loaded>
    </>
  );
}
