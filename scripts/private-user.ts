import { lchownSync, lstatSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** A user id with the group of the same number. */
export interface Identity {
  uid: number;
  gid: number;
}

/**
 * Ids that neither distributions nor systemd assign (systemd's UIDS-GIDS.md: 60578 to 61183 are unused), within the 65,536 that a
 * container usually has.
 */
const firstId = 60_600;
const lastId = 61_183;
const nobody = 65_534;

/** A dedicated user by number alone: it needs no entry anywhere, so nothing on the machine is changed. */
export function choosePrivateUser(random: () => number = Math.random): Identity {
  const taken = new Set([...readPasswd().map(({ uid }) => uid), ...runningUsers()]);
  const free = Array.from({ length: lastId - firstId + 1 }, (_, i) => firstId + i).filter((id) => !taken.has(id));
  const id = free[Math.floor(random() * free.length)];
  if (id === undefined) throw new Error(`every user from ${firstId} to ${lastId} is taken`);
  return { uid: id, gid: id };
}

export function isPrivateUser(uid: number): boolean {
  return uid >= firstId && uid <= lastId;
}

/**
 * A user with a name, for a program that requires one: it cannot log in and no process runs as it, so that nobody can tamper with the
 * program. Null when there is none.
 */
export function findIdleUser(): number | null {
  const running = runningUsers();
  const idle = readPasswd().filter(({ uid, shell }) => {
    const locked = /\/(?:nologin|false)$/.test(shell);
    return locked && uid !== 0 && uid !== nobody && !running.has(uid);
  });
  return idle[0]?.uid ?? null;
}

/** Recursively changes a folder's owner; links are not followed. */
export function giveTo(path: string, { uid, gid }: Identity): void {
  lchownSync(path, uid, gid);
  if (!lstatSync(path).isDirectory()) return;
  for (const name of readdirSync(path)) giveTo(join(path, name), { uid, gid });
}

function readPasswd(): { uid: number; shell: string }[] {
  let text = "";
  try {
    text = readFileSync("/etc/passwd", "utf8");
  } catch {
    // A container may lack the file.
  }
  return text.split("\n").flatMap((line) => {
    const [, , uid, , , , shell] = line.split(":");
    return uid === undefined || shell === undefined ? [] : [{ uid: Number(uid), shell }];
  });
}

/** Users of the running processes. */
function runningUsers(): Set<number> {
  const users = new Set<number>();
  for (const pid of readdirSync("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    try {
      const line = /^Uid:\s+(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "";
      for (const uid of line.split(/\s+/)) users.add(Number(uid));
    } catch {
      // It has exited meanwhile.
    }
  }
  return users;
}
