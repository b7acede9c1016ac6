import { expect, it } from "vitest";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;

it("answers every snapshot route as Cinder does, and backs a snapshot up without its volume", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "snapshots");
  const volume = (await instance.request("POST", `${base}/volumes`, { volume: { size: 1, name: "v" } })).body.volume.id;
  const create = (name: string, snapshot: object, version?: number) => {
    const body = { snapshot: { volume_id: volume, ...snapshot } };
    return golden.ask(name, "POST", `${base}/snapshots`, { body, ...(version !== undefined && { version }) });
  };
  await golden.ask("empty list", "GET", `${base}/snapshots`);
  await create("of a volume in the making", {});
  await setStatus(instance, "volumes", volume, "in-use");
  await create("of a volume in use", {});
  await create("of no volume", { volume_id: null });
  await create("with a key nobody knows", { size: 1 });
  await create("by force, perhaps", { force: "maybe" });
  const forced = await create("of a volume in use, by force", { force: true, name: " s1 ", metadata: { k: "v" } });
  await create("of a volume in use, newer", { display_name: "s2" }, 66);
  await create("without force, newer", { force: false }, 66);
  await setStatus(instance, "volumes", volume, "available");
  await create("of an available volume", { description: "third" });
  const id = forced.body.snapshot.id as string;
  for (const version of [0, 14, 41, 65]) {
    await golden.ask(`show at 3.${version}`, "GET", `${base}/snapshots/${id}`, { version });
  }
  await golden.ask("show what is no id", "GET", `${base}/snapshots/nope`);
  await golden.ask("list", "GET", `${base}/snapshots?sort=created_at:asc`);
  await golden.ask("list in detail", "GET", `${base}/snapshots/detail?limit=1&sort=created_at:asc`);
  await golden.ask("list of a volume and name", "GET", `${base}/snapshots?volume_id=${volume}&name=s2`);
  const change = (name: string, snapshot: object) =>
    golden.ask(name, "PUT", `${base}/snapshots/${id}`, { body: { snapshot } });
  await change("change", { name: " new ", description: "d" });
  await change("change by old names", { display_name: "older", display_description: null });
  await change("change nothing", {});
  await change("change what cannot be", { status: "available" });
  const metadata = `${base}/snapshots/${id}/metadata`;
  await golden.ask("metadata", "GET", metadata);
  await golden.ask("add metadata", "POST", metadata, { body: { metadata: { a: "b" } } });
  await golden.ask("set a key", "PUT", `${metadata}/a`, { body: { meta: { a: "c" } } });
  await golden.ask("metadata of a key", "GET", `${metadata}/a`);
  await golden.ask("metadata of no key", "GET", `${metadata}/zap`);
  await golden.ask("remove a key", "DELETE", `${metadata}/a`);
  await golden.ask("replace metadata", "PUT", metadata, { body: { metadata: { x: "y" } } });
  await golden.ask("list by metadata", "GET", `${base}/snapshots?metadata={'x':'y'}`, { version: 22 });
  await golden.ask("list by metadata, older", "GET", `${base}/snapshots?metadata={'q':'y'}`, { version: 21 });
  await golden.ask("list by a zone", "GET", `${base}/snapshots?availability_zone=moon`);
  const act = (name: string, body: object) => golden.ask(name, "POST", `${base}/snapshots/${id}/action`, { body });
  await act("reset to a word", { "os-reset_status": { status: "zap" } });
  await act("reset to nothing", { "os-reset_status": {} });
  await act("reset", { "os-reset_status": { status: "ERROR" } });
  await golden.ask("show after a reset", "GET", `${base}/snapshots/${id}`);
  await setStatus(instance, "snapshots", id, "creating");
  await golden.ask("delete while creating", "DELETE", `${base}/snapshots/${id}`);
  await setStatus(instance, "snapshots", id, "available");

  const backup = { volume_id: volume, snapshot_id: id, name: "of s1" };
  const accepted = await golden.ask("back it up", "POST", `${base}/backups`, { body: { backup } });
  await golden.ask("show while it is backed up", "GET", `${base}/snapshots/${id}`);
  await golden.ask("back it up again", "POST", `${base}/backups`, { body: { backup } });
  await golden.ask("show its backup", "GET", `${base}/backups/${accepted.body.backup.id}`);
  expect((await instance.request("GET", `${base}/volumes/${volume}`)).body.volume.status).toBe("available");
  await finishBackup(instance, accepted.body.backup.id);
  await golden.ask("delete its volume", "DELETE", `${base}/volumes/${volume}`);
  await golden.ask("delete", "DELETE", `${base}/snapshots/${id}`);
  await golden.ask("show while deleting", "GET", `${base}/snapshots/${id}`);
  await act("delete by force", { "os-force_delete": null });
  await golden.ask("delete what is no id", "DELETE", `${base}/snapshots/nope`);
  golden.check();
});
