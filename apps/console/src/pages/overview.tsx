import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { AnswerOf } from "@tephra/wire";
import { lazy, Suspense, useState } from "react";
import { call } from "../data/api.ts";
import { route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action, ReasonField } from "../parts/action.tsx";
import { bytesText, countText, durationText, quoted, shown } from "../parts/format.ts";
import { OperationsTable } from "../parts/operations-table.tsx";
import { PageHead, Panel } from "../parts/panel.tsx";
import { Loaded, Skeleton } from "../parts/states.tsx";
import { Status, ToneIcon } from "../parts/status.tsx";
import { DataTable } from "../parts/table.tsx";
import { Bytes, Foreign } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";
import { type Tone, toneOf } from "../parts/words.ts";

// Apart from the page: what needs somebody does not wait for it.
const ActivityPanel = lazy(() => import("../parts/charts.tsx").then((charts) => ({ default: charts.ActivityPanel })));

type Overview = AnswerOf<"GET /ops/overview">["overview"];

/** The pages that alerts lead to; what a later release names beside them is told without a link. */
const linked = [
  "/workers",
  "/repositories",
  "/operations",
  "/backups",
  "/volumes",
  "/policies",
  "/notifications",
  "/projects",
];

type OneAlert = Overview["alerts"][number];

/** For how long, as the command line has it; in hours. */
const spans = { "1h": 1, "8h": 8, "24h": 24, "7d": 7 * 24, "30d": 30 * 24 } as const;
type Span = keyof typeof spans;
const spanWords: Readonly<Record<Span, string>> = {
  "1h": "an hour",
  "8h": "8 hours",
  "24h": "a day",
  "7d": "a week",
  "30d": "30 days",
};

/** How the alert is named by routes and commands. */
const paramsOf = ({ code, subject }: OneAlert) => ({ code, subject: subject ?? "-" });
const wordsOf = ({ code, subject }: OneAlert): string => (subject === null ? code : `${code} ${quoted(subject)}`);

function Snooze({ alert }: { alert: OneAlert }) {
  const [reason, setReason] = useState("");
  const [span, setSpan] = useState<Span>("8h");
  const until = () => new Date(Date.now() + spans[span] * 3_600_000).toISOString();
  return (
    <Action
      label="Snooze"
      effects={
        <>
          <p>{shown(alert.text)}</p>
          <p>Nobody is told of it for that time. It stays here as snoozed, and is told again afterwards.</p>
          <label className="field">
            For{" "}
            <select value={span} onChange={(event) => setSpan(event.currentTarget.value as Span)}>
              {Object.entries(spanWords).map(([value, words]) => (
                <option key={value} value={value}>
                  {words}
                </option>
              ))}
            </select>
          </label>
          <ReasonField value={reason} onChange={setReason} />
        </>
      }
      isFilled={reason.trim() !== ""}
      command={`tephra alert snooze ${wordsOf(alert)} --for ${span} --reason ${quoted(reason || "REASON")}`}
      run={() => {
        const body = { until: until(), reason };
        return call("PUT /ops/alerts/:code/:subject/snooze", { params: paramsOf(alert), body });
      }}
      done="The alert is snoozed."
    />
  );
}

function OneBanner({ alert }: { alert: OneAlert }) {
  const may = useMay();
  const { severity, text, since, href, snoozed_until: until } = alert;
  const [to = "/", query = ""] = href.split("?");
  const tone: Tone = until !== null ? "gone" : severity === "critical" ? "bad" : "warn";
  return (
    <li className={`banner tone-${tone}`}>
      <ToneIcon tone={tone} />
      <span>
        {shown(text)}{" "}
        {since && (
          <span className="second">
            since <Age at={since} />
          </span>
        )}
        {until !== null && (
          <span className="second">
            {" "}
            Snoozed until <Moment at={until} /> by <Foreign text={alert.snoozed_by} />:{" "}
            <Foreign text={alert.snoozed_reason} />
          </span>
        )}
      </span>
      {linked.includes(to) && (to !== "/projects" || may("ops:projects")) && (
        <Link to={to} search={Object.fromEntries(new URLSearchParams(query)) as never}>
          Show
        </Link>
      )}
      {may("ops:alert:snooze") &&
        (until === null ? (
          <Snooze alert={alert} />
        ) : (
          <Action
            label="Tell again"
            run={() => call("DELETE /ops/alerts/:code/:subject/snooze", { params: paramsOf(alert) })}
            done="The alert is told again."
          />
        ))}
    </li>
  );
}

const keyOf = ({ code, subject }: OneAlert): string => `${code} ${subject ?? ""}`;

function Banner({ alerts }: { alerts: Overview["alerts"] }) {
  const [told, snoozed] = [true, false].map((is) => alerts.filter((one) => (one.snoozed_until === null) === is));
  return (
    <>
      {told?.length === 0 ? (
        <p className="banner tone-ok">
          <ToneIcon tone="ok" />
          <span>Nothing needs you. Checked: workers, repositories, queue, volumes, operations, schedules.</span>
        </p>
      ) : (
        <ul className="banners" aria-label="What needs you">
          {told?.map((alert) => (
            <OneBanner key={keyOf(alert)} alert={alert} />
          ))}
        </ul>
      )}
      {snoozed !== undefined && snoozed.length > 0 && (
        <details className="snoozed">
          <summary>{countText(snoozed.length)} snoozed</summary>
          <ul className="banners" aria-label="What is snoozed">
            {snoozed.map((alert) => (
              <OneBanner key={keyOf(alert)} alert={alert} />
            ))}
          </ul>
        </details>
      )}
    </>
  );
}

interface Share {
  name: string;
  count: number;
  tone: Tone;
}

/** Parts of a whole as one bar. */
function Shares({ of }: { of: readonly Share[] }) {
  return (
    <div className="shares" aria-hidden="true">
      {of.map(({ name, count, tone }) => (
        <span key={name} className={`tone-${tone}`} style={{ flexGrow: count }} />
      ))}
    </div>
  );
}

function Protected({ protection }: { protection: Overview["protection"] }) {
  const shares: Share[] = [
    ["protected", protection.protected],
    ["late", protection.late],
    ["at risk", protection.at_risk],
    ["never", protection.never],
  ].map(([name, count]) => ({ name: String(name), count: Number(count), tone: toneOf(String(name)) }));
  const wanted = shares.reduce((sum, { count }) => sum + count, 0);
  const excluded: Share = { name: "excluded", count: protection.excluded, tone: "gone" };
  return (
    <>
      <p className="figure">
        <b>{countText(protection.protected)}</b> of {countText(wanted)} within their target
      </p>
      <Shares of={shares} />
      <p className="legend">
        {[...shares.slice(1), excluded].map(({ name, count, tone }) => (
          <Link key={name} to="/volumes" search={{ state: name } as never}>
            <ToneIcon tone={tone} /> {countText(count)} {name}
          </Link>
        ))}
      </p>
    </>
  );
}

function Proven({ proof }: { proof: Overview["proof"] }) {
  const shares: Share[] = [
    { name: "within 7 days", count: proof.week, tone: "proof" },
    { name: "within 30 days", count: proof.month, tone: "restore" },
    { name: "longer ago", count: proof.older, tone: "warn" },
    { name: "never", count: proof.never, tone: "gone" },
  ];
  const all = shares.reduce((sum, { count }) => sum + count, 0);
  return (
    <>
      <p className="figure">
        <b>{countText(proof.week)}</b> of {countText(all)} backups within 7 days
      </p>
      <Shares of={shares} />
      <p className="legend">
        {shares.slice(1).map(({ name, count, tone }) => (
          <span key={name} className="status">
            <ToneIcon tone={tone} /> {countText(count)} {name}
          </span>
        ))}
        <span className="status">
          <ToneIcon tone={proof.damaged > 0 ? "bad" : "ok"} /> {countText(proof.damaged)} damaged
        </span>
      </p>
    </>
  );
}

function Now({ overview: { queue, workers, operations, last_success_at } }: { overview: Overview }) {
  const waiting = queue.ready + queue.dispatched;
  const rate = operations.running.reduce((sum, { rate_bytes_per_second }) => sum + (rate_bytes_per_second ?? 0), 0);
  return (
    <>
      <p className="figure">
        <b>{countText(queue.running)}</b> tasks run · <b>{countText(waiting)}</b> wait
      </p>
      <p>
        {waiting > 0 && `Oldest ${durationText(queue.oldest_seconds)} · `}
        {rate > 0 && `${bytesText(rate)}/s · `}
        {countText(workers.live)} workers, {countText(workers.busy)} of {countText(workers.slots)} slots busy
        {workers.silent > 0 && ` · ${countText(workers.silent)} silent`}
        {workers.disabled > 0 && ` · ${countText(workers.disabled)} disabled`}
      </p>
      <p>
        Last success <Age at={last_success_at} /> · failed in 24 h: {countText(operations.failed_24h)}
      </p>
    </>
  );
}

/** What can be restored, what needs somebody, and what runs. */
export function OverviewPage() {
  const may = useMay();
  const query = useQuery(route("GET /ops/overview", {}, { on: ["pulse"], polledMs: 5_000 }));
  return (
    <>
      <PageHead
        title="Overview"
        facts={
          query.data && (
            <>
              As of <Age at={query.data.overview.as_of} />
            </>
          )
        }
      />
      <Loaded query={query} lines={8}>
        {({ overview }) => (
          <>
            <Banner alerts={overview.alerts} />
            <div className="columns">
              <Panel title="Can be restored">
                <Protected protection={overview.protection} />
              </Panel>
              <Panel title="Proven">
                <Proven proof={overview.proof} />
              </Panel>
              <Panel title="Now">
                <Now overview={overview} />
              </Panel>
            </div>
            <Panel title="Running" facts="Those that take longest still.">
              <OperationsTable
                rows={overview.operations.running}
                empty={
                  <p>
                    Nothing runs. Last success: <Age at={overview.last_success_at} />
                  </p>
                }
              />
            </Panel>
            {may("ops:samples") && (
              <Suspense fallback={<Skeleton lines={12} />}>
                <ActivityPanel />
              </Suspense>
            )}
            {overview.repositories.length > 0 && (
              <Panel title="Repositories">
                <DataTable
                  caption="Repositories"
                  columns={[
                    { name: "State", cell: ({ state }) => <Status state={state === "up" ? "live" : "down"} /> },
                    { name: "Repository", cell: ({ name }) => <Foreign text={name} /> },
                    { name: "Backups", cell: ({ backups }) => countText(backups), isNumber: true },
                    { name: "Of volumes", cell: ({ bytes }) => <Bytes bytes={bytes} />, isNumber: true },
                    { name: "Stored", cell: ({ stored_bytes }) => <Bytes bytes={stored_bytes} />, isNumber: true },
                  ]}
                  rows={overview.repositories}
                  keyOf={({ name }) => name}
                  empty={<p>There is none.</p>}
                />
              </Panel>
            )}
          </>
        )}
      </Loaded>
    </>
  );
}
