import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Reply, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

interface Message {
  id: string;
  event_id: string;
  user_message: string;
  resource_uuid: string;
  request_id: string;
}

it("tells users what went wrong with their backups, in Cinder's words, until it is old or deleted", {
  timeout: 180_000,
}, async () => {
  const tasks = { unplaced_timeout_ms: 1500, reconcile_ms: 200, attempts_max: 1 };
  await using instance = await startInstance({ config: { tasks, message_ttl_seconds: 86_400 } });
  const user = journeyOn(instance);
  const ask = (method: string, path: string, version = 5): Promise<Reply> =>
    instance.request(method, `${base}${path}`, undefined, { "openstack-api-version": `volume 3.${version}` });
  const list = async (query = "", version = 5): Promise<Message[]> =>
    (await ask("GET", `/messages${query}`, version)).body.messages;
  const make = async (name: string): Promise<string> => {
    const image = join(instance.dataDir, `${name}.img`);
    await writeIslands(image, MiB, [{ offset: 0, data: randomBytesOf(name, MiB) }]);
    return user.importVolume(image, name);
  };
  const failed = (id: string) => user.settled("backups", id, "error");
  const [gone, good] = [await make("gone"), await make("good")];
  expect(await list()).toEqual([]);

  await user.removeFile(user.volumeFile(gone));
  const uncopied = await user.startBackup(gone);
  await failed(uncopied);
  const backup = await user.backUp(good);
  await rm(instance.repositoryDir, { recursive: true });
  const target = await user.startRestore(backup);
  await user.settled("volumes", target, "error_restoring");
  await user.accepted("DELETE", `${base}/backups/${backup}`);
  await failed(backup);
  await instance.workers[0]?.stop();
  const unplaced = await user.startBackup(good);
  await failed(unplaced);

  const rows = (await list("?sort=created_at:asc")).map(({ event_id, user_message, resource_uuid }) => [
    event_id.replace("VOLUME_VOLUME_BACKUP_", ""),
    user_message,
    resource_uuid,
  ]);
  expect(rows.at(0)).toEqual(["013_020", "create backup:Backup driver failed to create backup.", uncopied]);
  expect(rows.at(-1)).toEqual([
    "013_024",
    "create backup:Backup failed to schedule. Service not found for creating backup.",
    unplaced,
  ]);
  expect(rows.map(([event]) => event?.slice(0, 3))).toEqual(["013", "015", "014", "013"]);

  const [newest, , , oldest] = (await list()) as [Message, Message, Message, Message];
  const shown = await ask("GET", `/messages/${newest.id}`, 3);
  expect(shown.body.message).toEqual(newest);
  expect(Object.keys(newest)).toEqual(
    "id event_id user_message message_level created_at guaranteed_until request_id links resource_type resource_uuid".split(
      " ",
    ),
  );
  expect(newest).toMatchObject({
    message_level: "ERROR",
    resource_type: "VOLUME_BACKUP",
    request_id: expect.stringMatching(/^req-/),
    links: [
      { rel: "self", href: `${instance.url}${base}/messages/${newest.id}` },
      { rel: "bookmark", href: `${instance.url}/${project}/messages/${newest.id}` },
    ],
  });
  expect((await ask("GET", "/messages", 2)).body.itemNotFound.message).toBe("The resource could not be found.");
  expect(await list("?resource_uuid=nope", 3)).toHaveLength(4);
  expect(await list(`?resource_uuid=${uncopied}`)).toEqual([oldest]);
  expect(await list(`?event_id=${newest.event_id}&message_level=ERROR&resource_type=VOLUME_BACKUP`)).toEqual([newest]);
  expect(await list(`?request_id=${oldest.request_id}`)).toEqual([oldest]);
  expect(await list("?resource_uuid=nope")).toEqual([]);
  const page = (await ask("GET", "/messages?limit=1")).body;
  expect(page.messages).toEqual([newest]);
  expect(page.messages_links[0].href).toContain(`limit=1&marker=${newest.id}`);
  expect(await list(`?limit=9&marker=${newest.id}`)).toHaveLength(3);

  expect((await ask("DELETE", `/messages/${newest.id}`)).status).toBe(204);
  for (const method of ["GET", "DELETE"]) {
    const reply = await ask(method, `/messages/${newest.id}`);
    expect(reply.body).toEqual({ itemNotFound: { code: 404, message: `Message ${newest.id} could not be found.` } });
  }
  await instance.sql("UPDATE messages SET created_at = now() - interval '25 hours' WHERE id = $1", [oldest.id]);
  await instance.setDue("forget-messages");
  await instance.waitFor(async () => (await list()).length === 2, { what: "the old message is forgotten" });
});

it("shows nobody the messages of another project", { timeout: 60_000 }, async () => {
  const sha256 = (token: string) => createHash("sha256").update(token).digest("hex");
  const token = (name: string, project_id: string, role: string) => ({
    sha256: sha256(name),
    user_id: name,
    project_id,
    roles: [role],
  });
  const tokens = [
    token("anna", "aa", "member"),
    token("ralf", "aa", "reader"),
    token("bert", "bb", "member"),
    token("root", "cc", "admin"),
  ];
  await using instance = await startInstance({ workers: 0, config: { auth: { mode: "static", tokens } } });
  const id = "11111111-2222-3333-4444-555555555555";
  await instance.sql(
    `INSERT INTO messages (id, project_id, request_id, event_id, user_message, message_level, resource_type, resource_uuid)
     VALUES ($1, 'aa', 'req-1', 'e', 'm', 'ERROR', 'VOLUME_BACKUP', $1)`,
    [id],
  );
  const ask = async (who: string, method: string, path: string) => {
    const headers = { "x-auth-token": who, "openstack-api-version": "volume 3.5" };
    return instance.request(method, `/v3${path}`, undefined, headers);
  };
  const seen = async (who: string) => (await ask(who, "GET", "/messages")).body.messages.length;
  expect([await seen("anna"), await seen("ralf"), await seen("bert"), await seen("root")]).toEqual([1, 1, 0, 1]);
  for (const method of ["GET", "DELETE"]) expect((await ask("bert", method, `/messages/${id}`)).status).toBe(404);
  expect((await ask("ralf", "DELETE", `/messages/${id}`)).status).toBe(403);
  expect((await ask("anna", "DELETE", `/messages/${id}`)).status).toBe(204);
});
