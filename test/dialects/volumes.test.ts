import { expect, it } from "vitest";
import { setStatus, startApiOnly } from "./api-only.ts";
import { openGolden } from "./golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const server = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";

it("answers every volume route as Cinder does, and records attachments", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "volumes");
  await golden.ask("empty list", "GET", `${base}/volumes`);
  const body = {
    volume: { size: "2", name: " v1 ", description: "d", metadata: { a: "b" }, availability_zone: "nova" },
  };
  const created = await golden.ask("create", "POST", `${base}/volumes`, { body });
  const id = created.body.volume.id as string;
  const old = {
    volume: { size: 1, display_name: "v2", display_description: "d2", volume_type: "__DEFAULT__", "'backup_id": "x" },
  };
  await golden.ask("create with old names and a key nobody knows", "POST", `${base}/volumes`, { body: old });
  await golden.ask("create at the newest version", "POST", "/v3/volumes", {
    body: { volume: { size: 1 } },
    version: 71,
  });
  for (const version of [0, 12, 13, 21, 48, 61, 63, 65, 71]) {
    await golden.ask(`show at 3.${version}`, "GET", `${base}/volumes/${id}`, { version });
  }
  await golden.ask("show what is no id", "GET", `${base}/volumes/nope`);
  await golden.ask("list", "GET", `${base}/volumes`);
  await golden.ask("list in detail", "GET", `${base}/volumes/detail?limit=1`);
  await golden.ask("list after a marker", "GET", `${base}/volumes?limit=1&sort=size:asc&marker=${id}`);
  await golden.ask("list with a count", "GET", `${base}/volumes?with_count=1&limit=1`, { version: 45 });
  await golden.ask("list of a name", "GET", `${base}/volumes?name=v1`);
  await golden.ask("list of a size", "GET", `${base}/volumes?size=2`);
  await golden.ask("list of a size that is a word", "GET", `${base}/volumes?size=two`);
  await golden.ask("list of what boots", "GET", `${base}/volumes?bootable=true`);
  await golden.ask("list of what boots perhaps", "GET", `${base}/volumes?bootable=perhaps`);
  await golden.ask("list of a status", "GET", `${base}/volumes?status=error`);
  await golden.ask("list of all projects", "GET", `${base}/volumes?all_tenants=1&name=v2`);

  const act = (name: string, action: object) =>
    golden.ask(name, "POST", `${base}/volumes/${id}/action`, { body: action });
  const attach = { instance_uuid: server, mountpoint: "/dev/vdb", mode: "rw" };
  await act("attach while creating", { "os-attach": attach });
  await setStatus(instance, "volumes", id, "available");
  await act("attach to nothing", { "os-attach": { mountpoint: "/dev/vdb" } });
  await act("attach without a place", { "os-attach": { instance_uuid: server } });
  await act("attach in a mode nobody knows", { "os-attach": { ...attach, mode: "rx" } });
  await act("attach", { "os-attach": attach });
  const shown = await golden.ask("show in use", "GET", `${base}/volumes/${id}`);
  await act("attach again", { "os-attach": attach });
  await golden.ask("delete in use", "DELETE", `${base}/volumes/${id}`);
  await act("detach another", { "os-detach": { attachment_id: server } });
  await act("detach", { "os-detach": { attachment_id: shown.body.volume.attachments[0].attachment_id } });
  await act("detach what is not attached", { "os-detach": null });
  await act("attach to a host", { "os-attach": { host_name: "h1", mountpoint: "/dev/vdc" } });
  await act("detach the only one", { "os-detach": {} });
  await golden.ask("show after it all", "GET", `${base}/volumes/${id}`);
  await act("unknown action", { zap: {} });
  await act("two actions", { "os-attach": attach, "os-detach": {} });
  await act("no action", {});
  await golden.ask("attach what is no id", "POST", `${base}/volumes/nope/action`, { body: { "os-attach": attach } });
  await golden.ask("delete", "DELETE", `${base}/volumes/${id}`);
  await golden.ask("delete again", "DELETE", `${base}/volumes/${id}`);
  await golden.ask("delete what is no id", "DELETE", `${base}/volumes/nope`);
  expect(await instance.sql("SELECT count(*)::int AS n FROM attachments")).toEqual([{ n: 0 }]);
  golden.check();
});
