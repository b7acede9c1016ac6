import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { fingerprint, finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const unknown = "11111111-2222-3333-4444-555555555555";
const long = "n".repeat(256);

interface Fixtures {
  volume: string;
  small: string;
  inUse: string;
  failed: string;
  snapshot: string;
  backup: string;
}

async function makeFixtures(instance: Instance): Promise<Fixtures> {
  const volume = async (size: number, status: string): Promise<string> => {
    const reply = await instance.request("POST", `${base}/volumes`, { volume: { size } });
    await setStatus(instance, "volumes", reply.body.volume.id, status);
    return reply.body.volume.id;
  };
  const first = await volume(2, "available");
  const reply = await instance.request("POST", `${base}/snapshots`, { snapshot: { volume_id: first } });
  const snapshot = reply.body.snapshot.id as string;
  const created = await instance.request("POST", `${base}/backups`, { backup: { volume_id: first } });
  await finishBackup(instance, created.body.backup.id);
  return {
    volume: first,
    small: await volume(1, "available"),
    inUse: await volume(1, "in-use"),
    failed: await volume(1, "error"),
    snapshot,
    backup: created.body.backup.id,
  };
}

/** Name → fields of a backup beside the volume's id, and the microversion. */
const wrongFields: Record<string, [fields: object, version?: number]> = {
  "name too long": [{ name: long }],
  "name of emoji, too long": [{ name: "🦊".repeat(256) }],
  "name is a list": [{ name: ["x"] }],
  "name with NUL": [{ name: "a\0b" }],
  "name with half a pair": [{ name: "a\ud800" }],
  "description is a number": [{ description: 7 }],
  "description with a tab": [{ description: "a\tb" }],
  "description beyond the basic plane": [{ description: "🦊" }],
  "container too long": [{ container: "c".repeat(256) }],
  "container leads up": [{ container: "../up" }],
  "container leads up in the middle": [{ container: "a/../../up" }],
  "container is absolute": [{ container: "/etc" }],
  "container with a back slash": [{ container: "a\\b" }],
  "container with an empty part": [{ container: "a//b" }],
  "container ends in a slash": [{ container: "a/" }],
  "container is here": [{ container: "." }],
  "container among temporary names": [{ container: ".tephra/x" }],
  "container among temporary names, below": [{ container: "a/.tephra" }],
  "incremental is a word": [{ incremental: "maybe" }],
  "incremental is a number": [{ incremental: 2 }],
  "incremental is null": [{ incremental: null }],
  "force is a list": [{ force: [] }],
  "snapshot is no id": [{ snapshot_id: "s" }],
  "snapshot is a number": [{ snapshot_id: 1 }],
  "unknown snapshot": [{ snapshot_id: unknown }],
  "two unknown keys": [{ colour: "red", amount: 1 }],
  "key from Object": [{ constructor: 1 }],
  "metadata too early": [{ metadata: {} }, 42],
  "metadata is a list": [{ metadata: ["k"] }, 43],
  "metadata value is a number": [{ metadata: { k: 1 } }, 43],
  "metadata value is null": [{ metadata: { k: null } }, 43],
  "metadata value too long": [{ metadata: { k: "v".repeat(256) } }, 43],
  "metadata value with NUL": [{ metadata: { k: "\0" } }, 43],
  "metadata key is empty": [{ metadata: { "": "v" } }, 43],
  "metadata key with a percent sign": [{ metadata: { "k/%": "v" } }, 43],
  "zone too early": [{ availability_zone: "nova" }, 50],
  "zone is a number": [{ availability_zone: 3 }, 51],
};

const wrongBodies: Record<string, unknown> = {
  "a list": [],
  "an empty object": {},
  "a number": "5",
  "a text": '"backup"',
  null: "null",
  "no JSON": "{",
  "no UTF-8": new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d]),
  "backup null": { backup: null },
  "backup a list": { backup: [] },
  "no volume": { backup: {} },
  "volume is a number": { backup: { volume_id: 1 } },
  "volume is null": { backup: { volume_id: null } },
  "volume is empty": { backup: { volume_id: "" } },
  "volume is no id": { backup: { volume_id: "not a uuid" } },
  "unknown volume": { backup: { volume_id: unknown } },
  "unknown volume in capitals": { backup: { volume_id: "ABCDEFAB-2222-3333-4444-555555555555" } },
  "unknown volume without dashes": { backup: { volume_id: "11111111222233334444555555555555" } },
};

it("refuses every bad body of a backup in the validator's words, and leaves nothing behind", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "bad-input");
  const ids = await makeFixtures(instance);
  const before = await fingerprint(instance);
  const post = (name: string, body: unknown, options: { version?: number; headers?: Record<string, string> } = {}) =>
    golden.ask(name, "POST", `${base}/backups`, { body, ...options });
  for (const [name, body] of Object.entries(wrongBodies)) await post(name, body);
  await golden.ask("no body", "POST", `${base}/backups`);
  await post("another type", "{}", { headers: { "content-type": "text/plain" } });
  await post("too large", "x".repeat(120_000));
  await post("too large, JSON wanted", "x".repeat(120_000), { headers: { accept: "application/json" } });
  await post("one key too many", { backup: { volume_id: ids.volume }, extra: 1 });
  for (const [name, [fields, version]] of Object.entries(wrongFields)) {
    const body = { backup: { volume_id: ids.volume, ...fields } };
    await post(name, body, version === undefined ? {} : { version });
  }
  await post("volume in use", { backup: { volume_id: ids.inUse } });
  await post("volume in error, by force", { backup: { volume_id: ids.failed, force: true } });
  await post("snapshot of another volume", { backup: { volume_id: ids.small, snapshot_id: ids.snapshot } });
  await post("snapshot in the making", { backup: { volume_id: ids.volume, snapshot_id: ids.snapshot } });
  await post("incremental with no full", { backup: { volume_id: ids.small, incremental: true } });
  await post("version beyond the range", { backup: { volume_id: ids.volume } }, { version: 99 });
  await golden.ask("project of somebody else", "POST", "/v3/abc/backups", {
    body: { backup: { volume_id: ids.volume } },
  });
  expect(await fingerprint(instance)).toEqual(before);

  const restore = (name: string, body: unknown, id = ids.backup) =>
    golden.ask(`restore: ${name}`, "POST", `${base}/backups/${id}/restore`, { body });
  await restore("no key", {});
  await restore("a list", { restore: [] });
  await restore("unknown key", { restore: { size: 1 } });
  await restore("volume is no id", { restore: { volume_id: "abc" } });
  await restore("unknown volume", { restore: { volume_id: unknown } });
  await restore("volume in use", { restore: { volume_id: ids.inUse } });
  await restore("volume in error", { restore: { volume_id: ids.failed } });
  await restore("volume too small", { restore: { volume_id: ids.small } });
  await restore("name too long", { restore: { name: long } });
  await restore("unknown backup", { restore: {} }, unknown);
  await restore("bad body for an unknown backup", { restore: { bogus: 1 } }, unknown);
  await golden.ask("restore: no body", "POST", `${base}/backups/${ids.backup}/restore`);

  const volume = (name: string, fields: object, version = 0) =>
    golden.ask(`volume: ${name}`, "POST", `${base}/volumes`, { body: { volume: fields }, version });
  await volume("no size", {});
  await volume("size null", { size: null });
  await volume("size zero", { size: 0 });
  await volume("size negative", { size: "-1" });
  await volume("size a fraction", { size: 1.5 });
  await volume("size a word", { size: "big" });
  await volume("size beyond every disk", { size: 99999999 });
  await volume("name too long", { size: 1, name: long });
  await volume("name is a number", { size: 1, name: 5 });
  await volume("metadata value null", { size: 1, metadata: { k: null } });
  await volume("unknown key, newer", { size: 1, colour: "red" }, 53);
  await volume("from an image", { size: 1, imageRef: unknown });
  await volume("from a backup", { size: 1, backup_id: unknown }, 47);
  await volume("type nobody knows", { size: 1, volume_type: "gold" });
  await volume("zone nobody knows", { size: 1, availability_zone: "moon" });
  await volume("too large for the quota", { size: 5000 });

  const snapshot = (name: string, fields: object) =>
    golden.ask(`snapshot: ${name}`, "POST", `${base}/snapshots`, { body: { snapshot: fields } });
  await snapshot("no volume", {});
  await snapshot("volume is no id", { volume_id: "x" });
  await snapshot("unknown volume", { volume_id: unknown });
  await snapshot("volume in error", { volume_id: ids.failed, force: true });
  await snapshot("name too long", { volume_id: ids.volume, name: long });
  expect(await fingerprint(instance)).toEqual(before);
  golden.check();
});
