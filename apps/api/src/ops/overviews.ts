import { type Config, type Database, type Overview, type Principal, readOverview, seesAll } from "@tephra/control";
import { rarely } from "@tephra/control/process";

/** Whoever asks again within this time is told the same: many consoles ask no more of the database than one. */
const freshMs = 2_000;
/** Projects whose answers are kept; beyond, all are read anew. */
const projectsMax = 1_000;

export type Overviews = (principal: Principal) => Promise<Overview>;

/** The overview of each project, and that of all projects for those who see them. */
export function openOverviews(database: Database, config: Config): Overviews {
  const kept = new Map<string | null, () => Promise<Overview>>();
  return (principal) => {
    const scope = seesAll(principal) ? null : principal.projectId;
    const known = kept.get(scope);
    if (known) return known();
    if (kept.size >= projectsMax) kept.clear();
    const read = rarely(freshMs, () => readOverview(database, config, principal));
    kept.set(scope, read);
    return read();
  };
}
