import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { AnswerOf, Operation } from "@tephra/wire";
import { everyMs, route } from "../data/queries.ts";
import { type Service, servicesQuery } from "../data/services.ts";
import { useMay, useSession } from "../data/session.tsx";
import { countText, shown } from "../parts/format.ts";
import { OperationsTable } from "../parts/operations-table.tsx";
import { PageHead, Panel } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { ToneIcon } from "../parts/status.tsx";
import { Age, useNow } from "../parts/time.tsx";
import { type Tone, toneOf } from "../parts/words.ts";

type Counts = AnswerOf<"GET /ops/volumes">["facets"]["state"];

interface Alert {
  tone: Tone;
  text: string;
  to: string;
  search?: Record<string, string>;
}

const many = (count: number, one: string, more: string): string => `${countText(count)} ${count === 1 ? one : more}`;

/** What is wrong with the processes that do the work. */
function silentOnes(services: readonly Service[]): Alert[] {
  const workers = services.filter(({ binary }) => binary === "cinder-backup");
  if (workers.every(({ state }) => state === "down")) {
    return [{ tone: "bad", text: "No worker is live: nothing that was asked for goes on.", to: "/workers" }];
  }
  const down = services.filter(({ state, status }) => state === "down" && status === "enabled");
  return down.map(({ binary, host }) => ({ tone: "bad", text: `${binary} on ${host} is silent.`, to: "/workers" }));
}

/** What somebody should look at, worst first. */
function alertsOf(counts: Counts, failed: readonly Operation[], services: readonly Service[] | undefined): Alert[] {
  const ofVolumes = (state: keyof Counts, tone: Tone, text: string): Alert[] => {
    const count = counts[state] ?? 0;
    return count === 0
      ? []
      : [{ tone, text: `${many(count, "volume", "volumes")}: ${text}`, to: "/volumes", search: { state } }];
  };
  const failures: Alert = {
    tone: "bad",
    text: `${many(failed.length, "operation has", "operations have")} failed in the last 24 h.`,
    to: "/operations",
    search: { state: "failed" },
  };
  return [
    ...(services ? silentOnes(services) : []),
    ...(failed.length > 0 ? [failures] : []),
    ...ofVolumes("never", "bad", "never backed up."),
    ...ofVolumes("at risk", "risk", "at risk, since the newest try has failed, or something newer is damaged."),
    ...ofVolumes("late", "warn", "late, since the newest good backup is older than the target."),
  ];
}

function Banner({ alerts }: { alerts: readonly Alert[] }) {
  if (alerts.length === 0) {
    return (
      <p className="banner tone-ok">
        <ToneIcon tone="ok" />
        <span>Nothing needs you. Checked: volumes, workers, operations.</span>
      </p>
    );
  }
  return (
    <ul className="banners" aria-label="What needs you">
      {alerts.map(({ tone, text, to, search }) => (
        <li key={text} className={`banner tone-${tone}`}>
          <ToneIcon tone={tone} />
          <span>{shown(text)}</span>
          <Link to={to} search={(search ?? {}) as never}>
            Show
          </Link>
        </li>
      ))}
    </ul>
  );
}

const states = ["protected", "late", "at risk", "never", "excluded"] as const;

function Protected({ counts }: { counts: Counts }) {
  const of = (state: (typeof states)[number]): number => counts[state] ?? 0;
  const wanted = of("protected") + of("late") + of("at risk") + of("never");
  return (
    <>
      <p className="figure">
        <b>{countText(of("protected"))}</b> of {countText(wanted)} within their target
      </p>
      <div className="shares" aria-hidden="true">
        {states.slice(0, 4).map((state) => (
          <span key={state} className={`tone-${toneOf(state)}`} style={{ flexGrow: of(state) }} />
        ))}
      </div>
      <p className="legend">
        {states.slice(1).map((state) => (
          <Link key={state} to="/volumes" search={{ state } as never}>
            <ToneIcon tone={toneOf(state)} /> {countText(of(state))} {state}
          </Link>
        ))}
      </p>
    </>
  );
}

const listMax = 100;
const countOf = (rows: readonly unknown[]): string =>
  rows.length === listMax ? `${listMax} or more` : countText(rows.length);

/** What can be restored, what needs somebody, and what runs. */
export function OverviewPage() {
  const may = useMay();
  const now = useNow();
  const { project_id } = useSession();
  const list = (state: Operation["state"], limit = listMax) =>
    route("GET /ops/operations", { query: { state, limit } }, state === "running" ? everyMs.running : everyMs.list);
  const volumes = useQuery(route("GET /ops/volumes", { query: { limit: 1 } }));
  const running = useQuery(list("running"));
  const queued = useQuery(list("queued"));
  const failed = useQuery(list("failed"));
  const well = useQuery(list("succeeded", 1));
  const seesServices = may("volume_extension:services:index");
  const services = useQuery({ ...servicesQuery(project_id), enabled: seesServices });
  const recent = (failed.data?.operations ?? []).filter(
    ({ created_at, updated_at }) => now - Date.parse(updated_at ?? created_at) < 86_400_000,
  );
  const counts = volumes.data?.facets.state;
  // Nothing is said before everything was looked at.
  const isKnown = failed.data && (services.data || !seesServices);
  const last = well.data?.operations[0];
  return (
    <>
      <PageHead title="Overview" facts="What can be restored, what needs you, and what runs." />
      {counts && isKnown && <Banner alerts={alertsOf(counts, recent, services.data?.services)} />}
      <div className="columns">
        <Panel title="Can be restored">
          <Loaded query={volumes}>{({ facets }) => <Protected counts={facets.state} />}</Loaded>
        </Panel>
        <Panel title="Now">
          <Loaded query={running}>
            {({ operations }) => (
              <>
                <p className="figure">
                  <b>{countOf(operations)}</b> run · <b>{countOf(queued.data?.operations ?? [])}</b> wait
                </p>
                <p>
                  Failed in 24 h: {countText(recent.length)} · last success{" "}
                  <Age at={last?.updated_at ?? last?.created_at} />
                </p>
              </>
            )}
          </Loaded>
        </Panel>
      </div>
      <Panel title="Running">
        <Loaded query={running}>
          {({ operations }) => (
            <OperationsTable
              rows={operations.slice(0, 10)}
              empty={
                <p>
                  Nothing runs. Last: {last ? `${last.kind}, well, ` : "nothing yet"}
                  {last && <Age at={last.updated_at ?? last.created_at} />}
                </p>
              }
            />
          )}
        </Loaded>
      </Panel>
    </>
  );
}
