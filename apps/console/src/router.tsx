import { createRootRoute, createRoute, createRouter, Link, lazyRouteComponent } from "@tanstack/react-router";
import { Frame } from "./frame/frame.tsx";

const root = createRootRoute({
  component: Frame,
  notFoundComponent: () => (
    <div className="empty">
      <p>There is no such page.</p>
      <Link to="/">To the first page</Link>
    </div>
  ),
});

/** What is in the query string: text each, since people edit addresses. */
export type Search = Readonly<Record<string, string | undefined>>;

/** A page's query string is its state: filters, cursors, tabs. */
const asTexts = (search: Record<string, unknown>): Search =>
  Object.fromEntries(
    Object.entries(search).flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)]])),
  );

const page = <Path extends string>(
  path: Path,
  load: () => Promise<Record<string, React.ComponentType>>,
  name: string,
) =>
  createRoute({
    getParentRoute: () => root,
    path,
    validateSearch: asTexts,
    component: lazyRouteComponent(load, name),
  });

const tree = root.addChildren([
  page("/", () => import("./pages/overview.tsx"), "OverviewPage"),
  page("/volumes", () => import("./pages/volumes.tsx"), "VolumesPage"),
  page("/volumes/$id", () => import("./pages/volume.tsx"), "VolumePage"),
  page("/machines", () => import("./pages/machines.tsx"), "MachinesPage"),
  page("/machines/$id", () => import("./pages/machine.tsx"), "MachinePage"),
  page("/backups", () => import("./pages/backups.tsx"), "BackupsPage"),
  page("/backups/$id", () => import("./pages/backup.tsx"), "BackupPage"),
  page("/backups/$id/restore", () => import("./pages/restore.tsx"), "RestorePage"),
  page("/operations", () => import("./pages/operations.tsx"), "OperationsPage"),
  page("/operations/$id", () => import("./pages/operation.tsx"), "OperationPage"),
  page("/workers", () => import("./pages/workers.tsx"), "WorkersPage"),
  page("/repositories", () => import("./pages/repositories.tsx"), "RepositoriesPage"),
  page("/repositories/$id", () => import("./pages/repository.tsx"), "RepositoryPage"),
  page("/policies", () => import("./pages/policies.tsx"), "PoliciesPage"),
  page("/policies/$id", () => import("./pages/policy.tsx"), "PolicyPage"),
  page("/audit", () => import("./pages/audit.tsx"), "AuditPage"),
  page("/notifications", () => import("./pages/notifications.tsx"), "NotificationsPage"),
  page("/projects", () => import("./pages/projects.tsx"), "ProjectsPage"),
  page("/about", () => import("./pages/about.tsx"), "AboutPage"),
]);

/** Values of the query string are texts as they stand, not JSON. */
const textsOf = (text: string): Record<string, string> => Object.fromEntries(new URLSearchParams(text));
function textOf(search: Record<string, unknown>): string {
  const pairs = Object.entries(search).filter(([, value]) => value !== undefined && value !== "");
  return pairs.length === 0 ? "" : `?${new URLSearchParams(pairs.map(([key, value]) => [key, String(value)]))}`;
}

export const router = createRouter({
  routeTree: tree,
  basepath: "/console",
  parseSearch: textsOf,
  stringifySearch: textOf,
  defaultPreload: "intent",
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
