import { useQuery } from "@tanstack/react-query";
import type { RepositoryDetails } from "@tephra/wire";
import { lazy, Suspense } from "react";
import { route } from "../data/queries.ts";
import { useId } from "../parts/address.ts";
import { countText, shown } from "../parts/format.ts";
import { PageHead, Panel } from "../parts/panel.tsx";
import { RepositoryActions, RepositoryFacts } from "../parts/repository-facts.tsx";
import { Loaded, Skeleton } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { type Column, DataTable } from "../parts/table.tsx";
import { Bytes, Foreign } from "../parts/texts.tsx";

const StoredPanel = lazy(() => import("../parts/charts.tsx").then((charts) => ({ default: charts.StoredPanel })));

const columns: readonly Column<RepositoryDetails["projects"][number]>[] = [
  { name: "Project", cell: ({ project_id }) => <Foreign text={project_id} /> },
  { name: "Backups", cell: ({ backups }) => countText(backups), isNumber: true },
  { name: "Stored", cell: ({ stored_bytes }) => <Bytes bytes={stored_bytes} />, isNumber: true },
];

/** One repository: what is stored, by whom, since when, and who reaches it. */
export function RepositoryPage() {
  const name = useId();
  const query = useQuery(route("GET /ops/repositories/:name", { params: { name } }, { everyMs: 10_000 }));
  const one = query.data?.repository;
  return (
    <>
      <PageHead
        title={shown(name)}
        facts={one && <Status state={one.state === "up" ? "live" : "down"} />}
        actions={one && <RepositoryActions name={one.name} />}
      />
      <Loaded query={query}>
        {({ repository }) => (
          <>
            <RepositoryFacts of={repository} />
            <Suspense fallback={<Skeleton lines={8} />}>
              <StoredPanel repositories={[repository.name]} />
            </Suspense>
            <Panel title="Projects" facts="The ten that store most.">
              <DataTable
                caption="Projects"
                columns={columns}
                rows={repository.projects}
                keyOf={({ project_id }) => project_id}
                empty={<p>Nothing is stored here yet.</p>}
              />
            </Panel>
          </>
        )}
      </Loaded>
    </>
  );
}
