import type { AnswerOf } from "@tephra/wire";
import type { Command } from "commander";
import { formatBytes, renderTable } from "./output.ts";
import { openSession, positiveInteger } from "./session.ts";

export function addProjectCommands(program: Command): void {
  program
    .command("project")
    .description("Projects (admins and observers only).")
    .command("list")
    .description("What each uses of its quota, and how it is, those that store most first.")
    .option("--limit <number>", "", positiveInteger, 100)
    .action(list);
}

async function list(options: { limit: number }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const answer = await client.get<AnswerOf<"GET /ops/projects">>(`/ops/projects?limit=${options.limit}`);
  const rows = answer.projects.map(({ project_id, quota, running, waiting, late, never, stored_bytes }) => {
    const used = (["volumes", "gigabytes", "backups", "backup_gigabytes"] as const).map((name) => {
      const { limit, in_use } = quota[name];
      return limit < 0 ? String(in_use) : `${in_use}/${limit}`;
    });
    return [project_id, ...used, running, waiting, late, never, formatBytes(stored_bytes)];
  });
  const head = ["PROJECT", "VOLUMES", "GIB", "BACKUPS", "BACKUP GIB", "RUNNING", "WAITING", "LATE", "NEVER", "STORED"];
  print(answer, renderTable(head, rows));
}
