import {
  getRepository,
  listRepositories,
  type PassRow,
  type RepositoryFacts,
  requestReap,
  requestRescan,
} from "@tephra/control";
import { type AnswerOf, type Repository, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";

const viewPass = (pass: PassRow | null) =>
  pass && { operation_id: pass.id, state: pass.state, at: pass.createdAt.toISOString() };

/** Neither URL nor secrets. */
const view = ({ repository, ...facts }: RepositoryFacts): Repository => ({
  name: repository.name,
  driver: repository.url.split(":")[0] as Repository["driver"],
  default: repository.default,
  zone: repository.zone,
  encrypted: repository.encryption !== undefined,
  state: facts.reachedBy.length > 0 ? "up" : "down",
  reached_by: facts.reachedBy,
  unreachable_from: facts.unreachableFrom,
  backups: facts.backups,
  bytes: facts.bytes,
  stored_bytes: facts.storedBytes,
  stored_per_day: facts.storedPerDay,
  free_bytes: facts.freeBytes,
  full_at: facts.fullAt?.toISOString() ?? null,
  probe_ms: facts.probeMs,
  max_running_tasks: repository.max_running_tasks,
  key_versions: facts.keyVersions,
  proof: facts.proof,
  last_reap: viewPass(facts.lastReap),
  last_rescan: viewPass(facts.lastRescan),
});

export const repositories = {
  /** All that are configured, reached or not. */
  list: defineOps({
    handle: async ({ database, config }) => {
      const body = { repositories: (await listRepositories(database, config)).map(view) };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/repositories"> };
    },
  }),

  show: defineOps({
    handle: async ({ database, config }, { params }) => {
      const { projects, ...facts } = await getRepository(database, config, params["name"] ?? "");
      const shares = projects.map(({ projectId, backups, storedBytes }) => {
        return { project_id: projectId, backups, stored_bytes: storedBytes };
      });
      const body = { repository: { ...view(facts), projects: shares } };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/repositories/:name"> };
    },
  }),

  /** Removes what is no longer needed; a dry run only reports it. */
  reap: defineOps({
    ...requests["POST /ops/repositories/:name/reap"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestReap(database, config, principal, {
        repository: params["name"] ?? "",
        dryRun: body.dry_run,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/repositories/:name/reap"> };
    },
  }),

  /** Every backup goes to the project recorded in it, unless the body names one for all of them. */
  rescan: defineOps({
    ...requests["POST /ops/repositories/:name/rescan"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestRescan(database, config, principal, {
        repository: params["name"] ?? "",
        projectId: body.project_id ?? null,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/repositories/:name/rescan"> };
    },
  }),
};
