import { expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

/** Requests exactly as programs send them that cannot run here: Go's client and what is built on it (cinder-api 10). */

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

/** What Go's client sends beside a body: it names the service by its type in the catalog. */
const gophercloud = (version?: string): Record<string, string> => ({
  "user-agent": "gophercloud/v2.0.0",
  accept: "application/json",
  ...(version && { "openstack-api-version": `volumev3 ${version}` }),
});

/** A time as Go's client parses it: a zone or a missing fraction is an error there. */
const goTime = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}$/;

const asking =
  (instance: Instance) =>
  async (
    method: string,
    path: string,
    { body, version, expected }: { body?: unknown; version?: string; expected: number },
  ) => {
    const reply = await instance.request(method, path, body, gophercloud(version));
    expect([reply.status, reply.text], `${method} ${path}`).toEqual([expected, reply.text]);
    return reply;
  };

async function filledVolume(instance: Instance): Promise<{ id: string; sha256: string }> {
  const user = journeyOn(instance);
  const id = await user.createVolume(1);
  const file = user.volumeFile(id);
  await writeIslands(file, null, [{ offset: 5 * MiB, data: randomBytesOf(id, 2 * MiB) }]);
  return { id, sha256: await sha256Of(file) };
}

it("does what gophercloud's acceptance tests do with backups", async () => {
  await using instance = await startInstance();
  const user = journeyOn(instance);
  const ask = asking(instance);
  const { id: volume } = await filledVolume(instance);
  const wanted = { volume_id: volume, name: "ACPTTEST", description: "Test backup" };
  const { backup } = (await ask("POST", `${base}/backups`, { body: { backup: wanted }, expected: 202 })).body;
  await user.settled("backups", backup.id, "available");
  const shown = (await ask("GET", `${base}/backups/${backup.id}`, { expected: 200 })).body.backup;
  expect(shown).toMatchObject({ name: wanted.name, volume_id: volume, description: wanted.description });
  for (const time of [shown.created_at, shown.updated_at, shown.data_timestamp]) expect(time).toMatch(goTime);

  await user.backUp(volume, { name: "second" });
  const names: string[] = [];
  let next: string | undefined = `${instance.url}${base}/backups/detail?limit=1`;
  while (next !== undefined && names.length < 5) {
    const page: { backups: { name: string }[]; backups_links?: { rel: string; href: string }[] } = (
      await ask("GET", next.replace(instance.url, ""), { expected: 200 })
    ).body;
    names.push(...page.backups.map((row: { name: string }) => row.name));
    next = page.backups_links?.find((link: { rel: string }) => link.rel === "next")?.href;
  }
  expect(names).toEqual(["second", "ACPTTEST"]);

  // Its body of an update lacks the wrapping object.
  const path = `${base}/backups/${backup.id}`;
  const bare = await ask("PUT", path, { body: { name: "renamed", description: null }, version: "3.9", expected: 200 });
  expect(bare.body.backup.name).toBe("renamed");
  await ask("PUT", path, { body: { metadata: { k: "v" } }, version: "3.43", expected: 200 });
  await ask("PUT", path, { body: { name: "x", size: 5 }, version: "3.43", expected: 400 });
  const changed = (await ask("GET", path, { version: "3.43", expected: 200 })).body.backup;
  expect(changed).toMatchObject({ name: "renamed", description: null, metadata: { k: "v" } });

  const reset = (status: string) => ({ body: { "os-reset_status": { status } }, expected: 202 });
  await ask("POST", `${path}/action`, reset("error"));
  expect((await ask("GET", path, { expected: 200 })).body.backup.status).toBe("error");
  await ask("POST", `${path}/action`, reset("available"));
  expect((await ask("GET", path, { expected: 200 })).body.backup.status).toBe("available");

  const record = (await ask("GET", `${path}/export_record`, { expected: 200 })).body["backup-record"];
  // Go decodes the text and encodes it again: padding and alphabet are the standard's.
  expect(Buffer.from(record.backup_url, "base64").toString("base64")).toBe(record.backup_url);
  await instance.sql("DELETE FROM backups WHERE id = $1", [backup.id]);
  const imported = await ask("POST", `${base}/backups/import_record`, {
    body: { "backup-record": record },
    expected: 201,
  });
  expect(imported.body.backup.id).toBe(backup.id);
  await user.settled("backups", backup.id, "available");

  await ask("POST", `${path}/action`, { body: { "os-force_delete": {} }, expected: 202 });
  await instance.waitFor(async () => (await instance.request("GET", path)).status === 404, {
    what: "the backup is gone",
  });
  await ask("DELETE", path, { expected: 404 });
});

it("makes Terraform's volume from a backup, and shows what its data sources read", async () => {
  await using instance = await startInstance();
  const user = journeyOn(instance);
  const ask = asking(instance);
  const volume = await filledVolume(instance);
  const backup = await user.backUp(volume.id);
  const wanted = { size: 1, name: "from_backup", description: "", metadata: {}, backup_id: backup };
  const made = (await ask("POST", `${base}/volumes`, { body: { volume: wanted }, version: "3.47", expected: 202 })).body
    .volume;
  expect(["creating", "restoring-backup", "available"]).toContain(made.status);
  await user.settled("volumes", made.id, "available");
  expect(await sha256Of(user.volumeFile(made.id))).toBe(volume.sha256);
  const shown = (await ask("GET", `${base}/volumes/${made.id}`, { expected: 200 })).body.volume;
  expect(shown).toMatchObject({ name: "from_backup", size: 1, bootable: "false", attachments: [], metadata: {} });
  expect(shown.created_at).toMatch(goTime);
  const small = { volume: { ...wanted, size: 1, backup_id: "11111111-1111-1111-1111-111111111111" } };
  await ask("POST", `${base}/volumes`, { body: small, version: "3.47", expected: 404 });

  await ask("PUT", `${base}/volumes/${made.id}`, {
    body: { volume: { name: "renamed", metadata: { a: "b" } } },
    expected: 200,
  });
  await ask("POST", `${base}/volumes/${made.id}/action`, { body: { "os-extend": { new_size: 2 } }, expected: 202 });
  expect(await user.settled("volumes", made.id, "available")).toMatchObject({ size: 2, name: "renamed" });
  await ask("DELETE", `${base}/volumes/${made.id}?cascade=true`, { expected: 202 });

  const quota = {
    quota_set: { volumes: 9, snapshots: 9, gigabytes: 900, backups: 9, backup_gigabytes: 900, groups: 10 },
  };
  const set = (await ask("PUT", `${base}/os-quota-sets/${project}`, { body: quota, expected: 200 })).body;
  expect(set.quota_set).toMatchObject({ volumes: 9, backups: 9, backup_gigabytes: 900 });
  const used = (await ask("GET", `${base}/os-quota-sets/${project}?usage=true`, { expected: 200 })).body;
  expect(used.quota_set.backups).toEqual({ limit: 9, in_use: 1, reserved: 0 });
  const zones = (await ask("GET", `${base}/os-availability-zone`, { expected: 200 })).body;
  expect(zones.availabilityZoneInfo).toEqual([{ zoneName: "nova", zoneState: { available: true } }]);
});

it("backs up a snapshot for Kubernetes' cinder-csi, and gives it back as a volume", async () => {
  await using instance = await startInstance();
  const user = journeyOn(instance);
  const ask = asking(instance);
  const volume = await filledVolume(instance);
  await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume.id]);
  const taken = {
    volume_id: volume.id,
    name: "snapshot-1",
    force: true,
    metadata: { "cinder.csi.openstack.org/cluster": "k" },
  };
  const { snapshot } = (await ask("POST", `${base}/snapshots`, { body: { snapshot: taken }, expected: 202 })).body;
  await user.settled("snapshots", snapshot.id, "available");
  await writeIslands(user.volumeFile(volume.id), null, [{ offset: 0, data: randomBytesOf("later", MiB) }]);

  const description = JSON.stringify({
    "csi.storage.k8s.io/volumesnapshot/name": "s",
    "csi.storage.k8s.io/volumesnapshot/namespace": "n",
  });
  const wanted = {
    ...{ volume_id: volume.id, snapshot_id: snapshot.id, name: "snapshot-1", description, force: true },
    ...{ metadata: { "cinder.csi.openstack.org/cluster": "k" }, availability_zone: "nova" },
  };
  const { backup } = (
    await ask("POST", `${base}/backups`, { body: { backup: wanted }, version: "3.51", expected: 202 })
  ).body;
  expect(await user.settled("backups", backup.id, "available")).toMatchObject({
    snapshot_id: snapshot.id,
    description,
  });
  await user.settled("snapshots", snapshot.id, "available");
  await ask("DELETE", `${base}/snapshots/${snapshot.id}`, { expected: 202 });
  const found = (await ask("GET", `${base}/backups/detail?name=snapshot-1`, { expected: 200 })).body.backups;
  expect(found.map((row: { id: string }) => row.id)).toEqual([backup.id]);

  const claim = {
    name: "pvc-1",
    size: 1,
    availability_zone: "nova",
    backup_id: backup.id,
    metadata: { "cinder.csi.openstack.org/cluster": "k" },
  };
  const made = (await ask("POST", `${base}/volumes`, { body: { volume: claim }, version: "3.47", expected: 202 })).body
    .volume;
  await user.settled("volumes", made.id, "available");
  expect(await sha256Of(user.volumeFile(made.id))).toBe(volume.sha256);
  const listed = (await ask("GET", `${base}/volumes/detail?limit=500&name=pvc-1`, { expected: 200 })).body.volumes;
  expect(listed[0].metadata).toEqual({ ...claim.metadata, src_backup_id: backup.id });
});
