import type { Alert as AlertRow, Overview as OverviewRow } from "@tephra/control";
import type { Alert, AnswerOf, Overview } from "@tephra/wire";
import { viewOperation } from "./operations.ts";
import { defineOps } from "./serve.ts";

const viewAlert = ({ since, ...alert }: AlertRow): Alert => ({ ...alert, since: since?.toISOString() ?? null });

function view(row: OverviewRow): Overview {
  const { "at risk": atRisk, ...protection } = row.protection;
  const { ready, dispatched, running, oldestSeconds } = row.queue;
  return {
    as_of: row.asOf.toISOString(),
    alerts: row.alerts.map(viewAlert),
    protection: { ...protection, at_risk: atRisk },
    proof: row.proof,
    queue: { ready, dispatched, running, oldest_seconds: oldestSeconds },
    workers: row.workers,
    operations: { running: row.running.map(viewOperation), failed_24h: row.failed },
    repositories: row.repositories.map(({ name, up, backups, bytes, storedBytes }) => {
      return { name, state: up ? "up" : "down", backups, bytes, stored_bytes: storedBytes };
    }),
    last_success_at: row.lastSuccessAt?.toISOString() ?? null,
  };
}

export const overview = {
  /** What can be restored, what needs somebody, what runs. */
  show: defineOps({
    handle: async ({ overviews }, { principal }) => {
      const body = { overview: view(await overviews(principal)) };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/overview"> };
    },
  }),
};
