import { type Config, type Database, type Overview, type Principal, readOverview, seesAll } from "@tephra/control";
import { rarelyEach } from "@tephra/control/process";

/** Whoever asks again within this time is told the same: many consoles ask no more of the database than one. */
const freshMs = 2_000;
/** Projects whose answers are kept; beyond, all are read anew. */
const projectsMax = 1_000;

export type Overviews = (principal: Principal) => Promise<Overview>;

/** The overview of each project, and that of all projects for those who see them. */
export function openOverviews(database: Database, config: Config): Overviews {
  const kept = rarelyEach<Overview>(freshMs, projectsMax);
  return (principal) => kept(scopeOf(principal), () => readOverview(database, config, principal));
}

/** A name of what the caller sees. */
export const scopeOf = (principal: Principal): string => (seesAll(principal) ? "all" : `of ${principal.projectId}`);
