import {
  attachVolume,
  type Config,
  type Database,
  detachVolume,
  forceDeleteSnapshot,
  forceDeleteVolume,
  GiB,
  InvalidError,
  type OperationKind,
  type Principal,
  QuotaExceededError,
  requestBackup,
  requestBackupDelete,
  requestBackupForceDelete,
  requestRestore,
  requestSnapshot,
  requestSnapshotDelete,
  requestVolume,
  requestVolumeDelete,
  requestVolumeExtend,
  resetBackupStatus,
  resetSnapshot,
  resetVolume,
} from "@tephra/control";
import {
  type BackupPlan,
  type ClaimedTask,
  ClaimLostError,
  cancelTask,
  claimTask,
  failOperation,
  finishBackup,
  finishBackupDelete,
  finishRestore,
  finishSnapshot,
  finishSnapshotDelete,
  finishVolume,
  finishVolumeDelete,
  finishVolumeExtend,
  OperationEndedError,
  type RestorePlan,
} from "@tephra/control/work";
import {
  type Backup,
  cancelWork,
  end,
  fail,
  finish,
  fits,
  giveUp,
  holdersOf,
  isAtWork,
  type Operation,
  parentsOf,
  type Reference,
  usersOf,
} from "./reference.ts";

export interface Real {
  database: Database;
  config: Config;
  principal: Principal;
}

/** Numbers that choose what a verb is done to, and how. */
export interface Choice {
  a: number;
  b: number;
  flag: boolean;
}

/** Does one thing to the service and to the reference; throws where the one allows what the other does not. */
export type Verb = (reference: Reference, real: Real, choice: Choice) => Promise<void>;

const pick = <T>(rows: readonly T[], n: number): T | undefined => rows[n % Math.max(1, rows.length)];

/** Whether the service accepts what the reference accepts. Null: both refuse. */
async function attempt<T>(allowed: boolean, verb: () => Promise<T>): Promise<{ answer: T } | null> {
  try {
    const answer = await verb();
    if (!allowed) throw new Error("accepted what must be refused");
    return { answer };
  } catch (error) {
    if (allowed || !(error instanceof InvalidError || error instanceof QuotaExceededError)) throw error;
    return null;
  }
}

async function begun(
  reference: Reference,
  { database, principal }: Real,
  operation: Omit<Operation, "id" | "held" | "claimed" | "blocked">,
  blocked = false,
): Promise<void> {
  const known = reference.operations.map(({ id }) => id);
  const row = await database.operation.findFirstOrThrow({
    where: { projectId: principal.projectId, state: { in: ["queued", "running"] }, id: { notIn: known } },
  });
  reference.operations.push({ ...operation, id: row.id, held: null, claimed: false, blocked });
}

const plain = { name: null, description: null, metadata: {}, availabilityZone: null };

const createVolume: Verb = async (reference, real, { a }) => {
  const size = 1 + (a % 3);
  const { database, config, principal } = real;
  const made = await attempt(fits(reference, { volumes: 1, gigabytes: size }), () =>
    requestVolume(database, config, principal, { ...plain, sizeGib: size, source: null }),
  );
  if (!made) return;
  const volume = {
    id: made.answer.id,
    status: "creating",
    wasInUse: false,
    attached: false,
    size,
    added: 0,
    gone: false,
    restored: null,
  };
  reference.volumes.push(volume);
  await begun(reference, real, { kind: "volume-create", volume });
};

const backUp: Verb = async (reference, real, { a, b, flag }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const { database, config, principal } = real;
  const snapshot =
    b % 3 === 0
      ? pick(
          reference.snapshots.filter((one) => one.volume === volume),
          b,
        )
      : undefined;
  const [incremental, force] = [b % 2 === 1, flag];
  const parents = parentsOf(reference, volume, snapshot);
  const isFree = snapshot
    ? snapshot.status === "available"
    : volume.status === "available" || (force && volume.status === "in-use");
  const allowed =
    isFree && fits(reference, { backups: 1, backup_gigabytes: volume.size }) && !(incremental && parents.length === 0);
  const request = {
    ...plain,
    volumeId: volume.id,
    snapshotId: snapshot?.id ?? null,
    container: null,
    incremental,
    force,
  };
  const made = await attempt(allowed, () => requestBackup(database, config, principal, request));
  if (!made) return;
  const { id, parentId } = made.answer;
  if (incremental !== parents.some((one) => one.id === parentId)) throw new Error(`${parentId} is no parent`);
  const backup: Backup = {
    id,
    volume,
    status: "creating",
    size: volume.size,
    parent: parentId,
    complete: false,
    gone: false,
  };
  reference.backups.push(backup);
  if (snapshot) snapshot.status = "backing-up";
  else {
    volume.wasInUse = volume.status === "in-use";
    volume.status = "backing-up";
  }
  await begun(reference, real, { kind: "backup-create", volume, backup, ...(snapshot && { snapshot }) });
};

const restore: Verb = async (reference, real, { a, b, flag }) => {
  const backup = pick(
    reference.backups.filter(({ status }) => status !== "deleted"),
    a,
  );
  const target = flag ? pick(reference.volumes, b) : undefined;
  if (!backup || (flag && !target)) return;
  const { database, config, principal } = real;
  const isRoom = target
    ? target.status === "available" && target.size >= backup.size
    : fits(reference, { volumes: 1, gigabytes: backup.size });
  const made = await attempt(backup.status === "available" && isRoom, () =>
    requestRestore(database, config, principal, { backupId: backup.id, volumeId: target?.id ?? null, name: null }),
  );
  if (!made) return;
  const fresh = {
    id: made.answer.volumeId,
    status: "",
    wasInUse: false,
    attached: false,
    size: backup.size,
    added: 0,
    gone: false,
    restored: null,
  };
  const volume = target ?? fresh;
  if (!target) reference.volumes.push(volume);
  volume.status = "restoring-backup";
  volume.wasInUse = false;
  volume.restored = null;
  backup.status = "restoring";
  await begun(reference, real, { kind: "backup-restore", volume, backup });
};

const dependsOn = ({ backups }: Reference, backup: Backup): boolean =>
  backups.some(({ parent, status }) => parent === backup.id && status !== "deleted");

/** Whether a removal waits for workers that do not know yet that their operation has ended. */
const isWaiting = ({ late }: Reference, on: (one: Operation) => boolean): boolean =>
  late.some(({ operation, running }) => running && on(operation));

const deleteBackup: Verb = async (reference, real, { a, flag: force }) => {
  const backup = pick(
    reference.backups.filter(({ status }) => status !== "deleted"),
    a,
  );
  if (!backup) return;
  const { database, config, principal } = real;
  const deletion = reference.operations.find((one) => one.backup === backup && one.kind === "backup-delete");
  if (force && deletion) return requestBackupForceDelete(database, principal, backup.id);
  const isResting = ["available", "error", "error_restoring"].includes(backup.status);
  const request = () =>
    force
      ? requestBackupForceDelete(database, principal, backup.id)
      : requestBackupDelete(database, config, principal, backup.id);
  const allowed = (force || isResting) && !dependsOn(reference, backup);
  if (!(await attempt(allowed, request))) return;
  if (force) cancelWork(reference, backup);
  const blocked = isWaiting(reference, (one) => one.backup === backup);
  backup.status = "deleting";
  await begun(reference, real, { kind: "backup-delete", volume: backup.volume, backup }, blocked);
};

const resetBackup: Verb = async (reference, { database, principal }, { a, flag }) => {
  const backup = pick(
    reference.backups.filter(({ status }) => status !== "deleted"),
    a,
  );
  if (!backup) return;
  const status = flag ? "available" : "error";
  const at = (kind: OperationKind) => reference.operations.find((one) => one.backup === backup && one.kind === kind);
  const [making, restoring] = [at("backup-create"), at("backup-restore")];
  const isWhole = backup.complete && !backup.gone && !at("backup-delete")?.claimed;
  const allowed = !flag || making !== undefined || restoring !== undefined || isWhole;
  if (!(await attempt(allowed, () => resetBackupStatus(database, principal, backup.id, status)))) return;
  if (making && flag) return;
  cancelWork(reference, backup);
  backup.status = restoring ? "available" : status;
};

const volumeWriters = ["volume-create", "volume-delete", "backup-restore"] as const;

const resetOneVolume: Verb = async (reference, { database, principal }, { a, flag }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const holders = holdersOf(reference, volume);
  const becomes = flag && volume.status === "creating" && holders.some(({ kind }) => kind === "volume-create");
  const isGone = volume.gone || holders.some(({ kind, claimed }) => kind === "volume-delete" && claimed);
  const isBusy = isAtWork(reference, (one) => one.volume === volume, volumeWriters);
  const reset = { status: flag ? "available" : "error", detached: false };
  const allowed = !flag || becomes || !(isGone || isBusy);
  if (!(await attempt(allowed, () => resetVolume(database, principal, volume.id, reset))) || becomes) return;
  giveUp(reference, holders);
  volume.wasInUse = false;
  volume.status = reset.status;
};

const resetOneSnapshot: Verb = async (reference, { database, principal }, { a, flag }) => {
  const snapshot = pick(reference.snapshots, a);
  if (!snapshot) return;
  const users = usersOf(reference, snapshot);
  const becomes = flag && snapshot.status === "creating" && users.some(({ kind }) => kind === "snapshot-create");
  const isGone = snapshot.gone || users.some(({ kind, claimed }) => kind === "snapshot-delete" && claimed);
  const isBusy = isAtWork(reference, (one) => one.snapshot === snapshot, ["snapshot-create", "snapshot-delete"]);
  const status = flag ? "available" : "error";
  const allowed = !flag || becomes || !(isGone || isBusy);
  if (!(await attempt(allowed, () => resetSnapshot(database, principal, snapshot.id, status))) || becomes) return;
  giveUp(reference, users);
  snapshot.status = status;
};

const attach: Verb = async (reference, { database, principal }, { a }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const attachment = { serverId: "server", hostName: null, device: "/dev/vdb", mode: "rw" as const };
  const allowed = volume.attached || volume.status === "available";
  const made = await attempt(allowed, () => attachVolume(database, principal, volume.id, attachment));
  if (!made || volume.attached) return;
  volume.attached = true;
  volume.status = "in-use";
};

const detach: Verb = async (reference, { database, principal }, { a }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  await detachVolume(database, principal, volume.id, null);
  volume.attached = false;
  volume.wasInUse = false;
  if (volume.status === "in-use") volume.status = "available";
};

const extend: Verb = async (reference, real, { a }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const { database, config, principal } = real;
  const allowed = volume.status === "available" && fits(reference, { gigabytes: 1 });
  const request = { sizeGib: volume.size + 1, inUse: false };
  if (!(await attempt(allowed, () => requestVolumeExtend(database, config, principal, volume.id, request)))) return;
  volume.status = "extending";
  volume.added = 1;
  await begun(reference, real, { kind: "volume-extend", volume });
};

const deletable = ["available", "error", "error_restoring", "error_deleting", "error_extending", "error_managing"];

const deleteVolume: Verb = async (reference, real, { a, flag: force }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const { database, principal } = real;
  const isFree = !volume.attached && !reference.snapshots.some((one) => one.volume === volume);
  const allowed = isFree && (force || deletable.includes(volume.status));
  const remove = force ? forceDeleteVolume : requestVolumeDelete;
  if (!(await attempt<unknown>(allowed, () => remove(database, principal, volume.id, { cascade: false })))) return;
  const cancelled = force
    ? reference.operations.filter((one) => one.volume === volume && !/^backup-(create|delete)$/.test(one.kind))
    : [];
  for (const operation of cancelled) {
    volume.added = 0;
    if (operation.backup?.status === "restoring") operation.backup.status = "available";
    end(reference, operation);
  }
  volume.status = "deleting";
  const blocked = isWaiting(reference, (one) => one.volume === volume);
  await begun(reference, real, { kind: "volume-delete", volume }, blocked);
};

const createSnapshot: Verb = async (reference, real, { a, flag: force }) => {
  const volume = pick(reference.volumes, a);
  if (!volume) return;
  const { database, config, principal } = real;
  const isFree = volume.status === "available" || (force && volume.status === "in-use");
  const made = await attempt(isFree && fits(reference, { snapshots: 1, gigabytes: volume.size }), () =>
    requestSnapshot(database, config, principal, { ...plain, volumeId: volume.id, force }),
  );
  if (!made) return;
  reference.time += 1;
  const of = { volume, size: volume.size, madeAt: reference.time };
  const snapshot = { ...of, id: made.answer.id, status: "creating", gone: false };
  reference.snapshots.push(snapshot);
  await begun(reference, real, { kind: "snapshot-create", volume, snapshot });
};

const deleteSnapshot: Verb = async (reference, real, { a, flag: force }) => {
  const snapshot = pick(reference.snapshots, a);
  if (!snapshot) return;
  const allowed = force || ["available", "error", "error_deleting"].includes(snapshot.status);
  const remove = force ? forceDeleteSnapshot : requestSnapshotDelete;
  if (!(await attempt(allowed, () => remove(real.database, real.principal, snapshot.id)))) return;
  const users = usersOf(reference, snapshot);
  if (users.some(({ kind }) => kind === "snapshot-delete")) return;
  giveUp(reference, users);
  snapshot.status = "deleting";
  const blocked = isWaiting(reference, (one) => one.snapshot === snapshot);
  await begun(reference, real, { kind: "snapshot-delete", volume: snapshot.volume, snapshot }, blocked);
};

async function claim({ database }: Real, operation: Operation): Promise<ClaimedTask | null> {
  const { id } = await database.task.findFirstOrThrow({ where: { operationId: operation.id } });
  return claimTask(database, { taskId: id, workerId: "model", leaseMs: 60_000 });
}

/** A worker takes what is to be done. What waits for cancelled work is given to nobody before that has let go. */
async function hold(reference: Reference, real: Real, operation: Operation): Promise<ClaimedTask> {
  if (operation.held) return operation.held;
  let held = await claim(real, operation);
  if ((held === null) !== operation.blocked) throw new Error(`the task is ${held ? "not " : ""}blocked`);
  if (held === null) {
    for (const one of reference.late) {
      await cancelTask(real.database, { taskId: one.held.id, claim: one.held.claim });
      one.running = false;
    }
    // What the reconciler does when nobody runs any more.
    const blocked = { operationId: operation.id, state: "blocked" };
    await real.database.task.updateMany({ where: blocked, data: { state: "ready" } });
    operation.blocked = false;
    held = await claim(real, operation);
  }
  if (held === null) throw new Error("the task cannot be had");
  operation.held = held;
  operation.claimed = true;
  return held;
}

const work: Verb = async (reference, real, { a }) => {
  const operation = pick(reference.operations, a);
  if (operation) await hold(reference, real, operation);
};

/** The report of a worker, as its handler makes it. */
async function report({ database }: Real, { volume, backup }: Operation, held: ClaimedTask): Promise<void> {
  const { operation } = held;
  const result = { taskId: held.id, claim: held.claim, bytesDone: 0, bytesStored: 0 };
  switch (operation.kind as OperationKind) {
    case "volume-create":
      return finishVolume(database, operation, result, volume.size * GiB);
    case "volume-extend": {
      const asked = (volume.size + volume.added) * GiB;
      return finishVolumeExtend(database, operation, result, { asked, sizeBytes: asked });
    }
    case "volume-delete":
      return finishVolumeDelete(database, operation, result);
    case "snapshot-create":
      return finishSnapshot(database, operation, result, volume.size * GiB);
    case "snapshot-delete":
      return finishSnapshotDelete(database, operation, result);
    case "backup-create": {
      const plan = {
        backupId: backup?.id,
        fingerprint: null,
        source: { kind: "volume" },
        prefix: "p",
        volumeMeta: null,
      };
      const sealed = { objects: 1, bytesStored: 1 };
      return finishBackup(database, operation, result, { plan: plan as unknown as BackupPlan, sealed });
    }
    case "backup-restore": {
      const plan = { backupId: backup?.id, volumeId: volume.id, backend: "files", chain: [], stored: null };
      const targetBytes = volume.size * GiB;
      return finishRestore(database, operation, result, { ...plan, targetBytes } as unknown as RestorePlan);
    }
    default:
      await finishBackupDelete(database, operation, result);
  }
}

const finishOne: Verb = async (reference, real, { a }) => {
  const operation = pick(reference.operations, a);
  if (!operation) return;
  await report(real, operation, await hold(reference, real, operation));
  finish(reference, operation);
};

/** Either the worker says so, or nobody could be found to do it. */
const failOne: Verb = async (reference, real, { a, flag }) => {
  const operation = pick(reference.operations, a);
  if (!operation) return;
  const held = flag ? await hold(reference, real, operation) : null;
  const failure = { reason: "It failed.", ...(held && { held: { taskId: held.id, claim: held.claim } }) };
  await failOperation(real.database, operation.id, failure);
  if (held) operation.held = null;
  fail(operation);
  end(reference, operation);
};

/** A worker is taken for dead: another has its task, and it does not know. */
const takeOver: Verb = async (reference, real, { a }) => {
  const operation = pick(
    reference.operations.filter(({ held }) => held !== null),
    a,
  );
  const held = operation?.held;
  if (!operation || !held) return;
  await real.database.task.update({ where: { id: held.id }, data: { leaseUntil: new Date(0) } });
  reference.late.push({ operation, held, running: false });
  operation.held = await claim(real, operation);
  if (operation.held?.claim !== held.claim + 1) throw new Error("a dead worker's task cannot be had");
};

/** A worker reports that lost its task, or whose operation has ended: nothing changes. */
const reportLate: Verb = async (reference, real, { a }) => {
  const late = pick(reference.late, a);
  if (!late) return;
  const refused = await report(real, late.operation, late.held).then(
    () => null,
    (error: unknown) => error,
  );
  if (refused instanceof ClaimLostError || refused instanceof OperationEndedError) return;
  throw new Error(`a late report of ${late.operation.kind} was taken: ${refused}`);
};

export const verbs: Readonly<Record<string, Verb>> = {
  createVolume,
  backUp,
  restore,
  deleteBackup,
  resetBackup,
  resetOneVolume,
  resetOneSnapshot,
  attach,
  detach,
  extend,
  deleteVolume,
  createSnapshot,
  deleteSnapshot,
  work,
  finishOne,
  failOne,
  takeOver,
  reportLate,
};
