import type { ProjectFacts } from "@tephra/control";
import { type AnswerOf, type Project, requests } from "@tephra/wire";
import { badRequest } from "../http/refusals.ts";
import { defineOps } from "./serve.ts";

function view({ projectId, quota, storedBytes, ...counts }: ProjectFacts): Project {
  const line = (name: keyof typeof quota) => ({ limit: quota[name].limit, in_use: quota[name].inUse });
  return {
    project_id: projectId,
    quota: {
      volumes: line("volumes"),
      gigabytes: line("gigabytes"),
      snapshots: line("snapshots"),
      groups: line("groups"),
      backups: line("backups"),
      backup_gigabytes: line("backup_gigabytes"),
    },
    ...counts,
    stored_bytes: storedBytes,
  };
}

export const projects = {
  /** Who uses how much, those that store most first; at most ten seconds old. */
  list: defineOps({
    ...requests["GET /ops/projects"],
    handle: async ({ projects: known }, { query: { q = "", marker, limit } }) => {
      const all = (await known()).filter(({ projectId }) => projectId.startsWith(q));
      const before = marker === undefined ? -1 : all.findIndex(({ projectId }) => projectId === marker);
      if (marker !== undefined && before < 0)
        throw badRequest("Invalid input received: marker: there is no such project");
      const page = all.slice(before + 1, before + 1 + limit);
      const next = before + 1 + limit < all.length ? (page.at(-1)?.projectId ?? null) : null;
      return { status: 200, body: { projects: page.map(view), next } satisfies AnswerOf<"GET /ops/projects"> };
    },
  }),
};
