import { randomUUID } from "node:crypto";
import type { Stage } from "./fixtures.ts";

type Interlude = (stage: Stage) => Promise<void>;

const makeBackup =
  (as: "a" | "admin", name: string, fields: (of: (name: string) => string) => object, minor = 0): Interlude =>
  async ({ ask, names, settled }) => {
    const { body } = await ask(as, "POST", "backups", { backup: fields((of) => names.get(of)) }, minor);
    names.set(name, body.backup.id);
    await settled();
  };

const reset =
  (name: string, status: string): Interlude =>
  async ({ ask, names }) => {
    await ask("admin", "POST", `backups/${names.get(name)}/action`, { "os-reset_status": { status } });
  };

const remove =
  (name: string): Interlude =>
  async ({ ask, names, settled }) => {
    await ask("a", "DELETE", `backups/${names.get(name)}`);
    await settled();
  };

/** What a case left behind that Cinder refused: backups of a volume that are not among the run's own. */
const removeStrayBackups: Interlude = async ({ ask, names, settled }) => {
  const { body } = await ask("a", "GET", `backups?volume_id=${names.get("vol_fresh")}`);
  for (const { id } of body.backups as { id: string }[]) {
    if (names.hide(id) === id) await ask("a", "DELETE", `backups/${id}`);
  }
  await settled();
};

const removeStrayVolumes: Interlude = async ({ ask, names, settled }) => {
  const { body } = await ask("a", "GET", "volumes");
  for (const { id } of body.volumes as { id: string }[]) {
    if (names.hide(id) === id) await ask("a", "DELETE", `volumes/${id}`);
  }
  await settled();
};

const restore =
  (backup: string, volume: string | null, named: string | null): Interlude =>
  async ({ ask, names, settled }) => {
    const target = { volume_id: volume && names.get(volume) };
    const { body } = await ask("a", "POST", `backups/${names.get(backup)}/restore`, { restore: target });
    if (named !== null) names.set(named, body.restore.volume_id);
    await settled();
  };

/** The record of a backup, and further ones with ids of their own. */
const exportRecords: Interlude = async ({ ask, names }) => {
  const { body } = await ask("admin", "GET", `backups/${names.get("full1")}/export_record`);
  const { backup_service: service, backup_url: url } = body["backup-record"];
  const fields = JSON.parse(Buffer.from(url, "base64").toString("utf8")) as Record<string, unknown>;
  const recordOf = (change: object): string => Buffer.from(JSON.stringify({ ...fields, ...change })).toString("base64");
  const ids = [randomUUID(), randomUUID(), randomUUID()] as const;
  names.set("svc", service);
  names.set("rec_full1", url);
  names.set("rec_new", recordOf({ id: ids[0] }));
  names.set("rec_new2", recordOf({ id: ids[1] }));
  names.set("rec_new3", recordOf({ id: ids[2], colour: "red" }));
};

const importNowhere: Interlude = async ({ ask, names, settled }) => {
  const record = { backup_service: "cinder.backup.drivers.nowhere.Driver", backup_url: names.get("rec_new2") };
  const { body } = await ask("admin", "POST", "backups/import_record", { "backup-record": record });
  names.set("newid2", body.backup.id);
  await settled();
};

const narrowQuota: Interlude = async ({ ask, names }) => {
  await ask("admin", "PUT", `os-quota-sets/${names.get("proj_b")}`, { quota_set: { backup_gigabytes: 1 } });
};

const name = (of: (name: string) => string, part: string): string => `${of("run")}-${part}`;

/** What happened before a recorded case and is in no case of its own, in order. */
export const interludes: Readonly<Record<string, readonly Interlude[]>> = {
  "create_ok.show_full1": [
    makeBackup("a", "full1", (of) => ({
      volume_id: of("vol_a1"),
      name: name(of, "full1"),
      description: "first one",
    })),
  ],
  "create_ok.show_azbk_351": [
    makeBackup("a", "azbk", (of) => ({ volume_id: of("vol_fresh"), name: "", availability_zone: "nova" }), 51),
    makeBackup("a", "badazbk", (of) => ({ volume_id: of("vol_fresh"), name: name(of, "badaz"), description: "" })),
  ],
  "create_ok.incremental_parent_error": [
    makeBackup("a", "forcedel2", (of) => ({
      volume_id: of("vol_fresh"),
      name: name(of, "fd2"),
      incremental: true,
    })),
    reset("forcedel2", "error"),
  ],
  "create_ok.incremental_from_old_snapshot": [removeStrayBackups, reset("forcedel2", "available")],
  "create_ok.bfull": [makeBackup("admin", "adminc", (of) => ({ volume_id: of("vol_adm"), incremental: true }))],
  "restore.unknown_key": [removeStrayVolumes],
  "restore.backup_in_error": [reset("snapbk", "error")],
  "restore.backup_after": [restore("full1", null, "rvol1"), restore("full1", "vol_a2", null)],
  "action.reset_upper_shown": [reset("azbk", "AVAILABLE")],
  "import.as_member": [exportRecords],
  "import.wrong_service_shown": [importNowhere],
  "delete.inc1_no_dependents": [remove("inc2")],
  "delete.full1_no_dependents": [remove("inc1")],
  "quota.gigabytes_over": [narrowQuota],
};
