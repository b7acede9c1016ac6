import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Repository } from "@tephra/wire";
import { lazy, Suspense } from "react";
import { call } from "../data/api.ts";
import { route } from "../data/queries.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { bytesText, countText, quoted, shown } from "../parts/format.ts";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { Loaded, Skeleton } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { Bytes } from "../parts/texts.tsx";
import { Age } from "../parts/time.tsx";

const StoredPanel = lazy(() => import("../parts/charts.tsx").then((charts) => ({ default: charts.StoredPanel })));

function Pass({ of }: { of: Repository["last_reap"] }) {
  if (of === null) return <>never</>;
  return (
    <Link to="/operations/$id" params={{ id: of.operation_id }}>
      <Age at={of.at} />, {of.state}
    </Link>
  );
}

function Actions({ name }: { name: string }) {
  const may = useMay();
  const params = { name };
  return (
    <div className="page-actions">
      {may("ops:reap") && (
        <>
          <Action
            label="Reap, dry run"
            run={() => call("POST /ops/repositories/:name/reap", { params, body: { dry_run: true } })}
            done="What would be removed is listed in the operation."
          />
          <Action
            label="Reap"
            isDanger
            name={name}
            effects={<p>What belongs to no backup, and is old enough, is removed. A dry run lists it first.</p>}
            command={`tephra repository reap ${quoted(name)}`}
            run={() => call("POST /ops/repositories/:name/reap", { params, body: {} })}
            done="The repository is being reaped."
          />
        </>
      )}
      {may("ops:rescan") && (
        <Action
          label="Rescan"
          effects={<p>Backups that are in the repository, but not known here, are entered.</p>}
          run={() => call("POST /ops/repositories/:name/rescan", { params, body: {} })}
          done="The repository is being scanned."
        />
      )}
    </div>
  );
}

/** Where backups are stored, and who reaches it. */
export function RepositoriesPage() {
  const query = useQuery(route("GET /ops/repositories"));
  return (
    <>
      <PageHead title="Repositories" facts="Where backups are stored, and who reaches it." />
      <Loaded query={query}>
        {({ repositories }) => (
          <>
            <Suspense fallback={<Skeleton lines={8} />}>
              <StoredPanel repositories={repositories.map(({ name }) => name)} />
            </Suspense>
            {repositories.map((one) => (
              <Panel
                key={one.name}
                title={shown(one.name)}
                facts={<Status state={one.state === "up" ? "live" : "down"} />}
              >
                <Facts
                  of={[
                    ["Driver", `${one.driver}${one.default ? ", the default one" : ""}`],
                    ["Zone", shown(one.zone)],
                    ["Encrypted", one.encrypted ? "yes" : "no"],
                    ["Reached by", `${countText(one.reached_by.length)} workers`],
                    ["Backups", countText(one.backups)],
                    ["Of volumes", <Bytes key="bytes" bytes={one.bytes} />],
                    ["Stored", <Bytes key="stored" bytes={one.stored_bytes} />],
                    [
                      "Grows by",
                      one.stored_per_day === null
                        ? "not known before two days"
                        : `${bytesText(Math.max(0, one.stored_per_day))} a day`,
                    ],
                    ["Proven within 7 days", countText(one.proof.week)],
                    ["Last reap", <Pass key="reap" of={one.last_reap} />],
                    ["Last rescan", <Pass key="rescan" of={one.last_rescan} />],
                  ]}
                />
                {one.unreachable_from.map(({ worker, why }) => (
                  <p key={worker} className="stale">
                    {shown(worker)}: {shown(why)}
                  </p>
                ))}
                <Actions name={one.name} />
              </Panel>
            ))}
          </>
        )}
      </Loaded>
    </>
  );
}
