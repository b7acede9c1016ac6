import { it } from "vitest";
import { startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";
import { makeWorld } from "../matrix-world.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;

it("answers for records, messages and notifications in whole", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "records");
  const world = await makeWorld(instance, project, `admin:${project}`);
  await instance.sql("UPDATE messages SET user_message = 'create backup:Backup driver failed to create backup.'");
  await instance.sql(`UPDATE notifications SET payload = '{"status": "available"}'`);
  const record = Buffer.from(JSON.stringify({ id: "11111111-2222-4333-8444-555555555555", size: 1 }));
  const service = "cinder.backup.drivers.posix.PosixBackupDriver";
  const importing = (url: string, more: object = {}) => ({
    body: { "backup-record": { backup_service: service, backup_url: url, ...more } },
  });
  const path = `${base}/backups/import_record`;
  const good = record.toString("base64");
  await golden.ask("import", "POST", path, importing(good));
  await golden.ask("import again", "POST", path, importing(good));
  await golden.ask("import nothing", "POST", path, { body: {} });
  await golden.ask("import an empty record", "POST", path, importing(""));
  await golden.ask("import what is no base64", "POST", path, importing("%%%"));
  await golden.ask("import more than there is", "POST", path, importing(good, { name: "n" }));
  await golden.ask("export what is not there", "GET", `${base}/backups/nope/export_record`);
  const creating = "11111111-2222-4333-8444-555555555555";
  await golden.ask("export what is not available", "GET", `${base}/backups/${creating}/export_record`);

  await golden.ask("messages before 3.3", "GET", `${base}/messages`, { version: 2 });
  await golden.ask("messages", "GET", `${base}/messages`, { version: 3 });
  await golden.ask("messages of a backup", "GET", `${base}/messages?resource_uuid=${world.backup}`, { version: 5 });
  await golden.ask("messages of nothing", "GET", `${base}/messages?event_id=x`, { version: 71 });
  await golden.ask("a message", "GET", `${base}/messages/${world.message}`, { version: 71 });
  await golden.ask("no message", "GET", `${base}/messages/nope`, { version: 71 });
  await golden.ask("delete a message", "DELETE", `${base}/messages/${world.message}`, { version: 71 });
  await golden.ask("delete it again", "DELETE", `${base}/messages/${world.message}`, { version: 71 });

  await golden.ask("dead notifications", "GET", "/ops/notifications");
  await golden.ask("notifications in no state", "GET", "/ops/notifications?state=lost");
  await golden.ask("send one again", "POST", `/ops/notifications/${world.delivery}/retry`);
  await golden.ask("send one that is not there", "POST", `/ops/notifications/${world.backup}/retry`);
  await golden.ask("rescan", "POST", "/ops/repositories/main/rescan");
  await golden.ask("rescan for an impossible project", "POST", "/ops/repositories/main/rescan", {
    body: { project_id: "a b" },
  });
  await golden.ask("rescan what is not there", "POST", "/ops/repositories/nope/rescan", { body: {} });
  golden.check();
});
