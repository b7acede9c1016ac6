import type { BackupHealth } from "@tephra/wire";
import { call } from "./api.ts";

/** Longer chains are shown from their newest member as far as this. */
const membersMax = 200;

export interface Chain {
  /** Newest first, the backup itself at the start, the full one at the end. */
  members: BackupHealth[];
  isWhole: boolean;
}

/** What a restore of a backup reads: it and everything that it builds on. @throws Fault */
export async function readChain(id: string, signal: AbortSignal): Promise<Chain> {
  const members: BackupHealth[] = [];
  for (let next: string | null = id; next !== null && members.length < membersMax; ) {
    const { backup }: { backup: BackupHealth } = await call("GET /ops/backups/:id", { params: { id: next }, signal });
    members.push(backup);
    next = backup.parent_id;
  }
  return { members, isWhole: members.at(-1)?.parent_id === null };
}
