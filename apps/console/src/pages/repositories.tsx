import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { lazy, Suspense } from "react";
import { route } from "../data/queries.ts";
import { shown } from "../parts/format.ts";
import { PageHead, Panel } from "../parts/panel.tsx";
import { RepositoryActions, RepositoryFacts } from "../parts/repository-facts.tsx";
import { Loaded, Skeleton } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";

const StoredPanel = lazy(() => import("../parts/charts.tsx").then((charts) => ({ default: charts.StoredPanel })));

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
                title={
                  <Link to="/repositories/$id" params={{ id: one.name }}>
                    {shown(one.name)}
                  </Link>
                }
                facts={<Status state={one.state === "up" ? "live" : "down"} />}
              >
                <RepositoryFacts of={one} />
                <RepositoryActions name={one.name} />
              </Panel>
            ))}
          </>
        )}
      </Loaded>
    </>
  );
}
