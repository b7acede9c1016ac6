import { afterAll, beforeAll, expect, it } from "vitest";
import { matchRoute, routeTable } from "../../../apps/api/src/ovirt/route-table.ts";
import { ovirtRoutes } from "../../../apps/api/src/ovirt/routes.ts";
import type { Instance } from "../../kit/instance.ts";
import { ask, projects, startEngine } from "./engine.ts";
import { makeWorld, type World } from "./world.ts";

let engine: Instance;
let world: World;
beforeAll(async () => {
  engine = await startEngine();
  world = await makeWorld(engine, projects.a, "admin@internal");
});
afterAll(() => engine?.[Symbol.asyncDispose]());

/** Actions that the engine names and that are refused here as paths that there are not (ovirt 6). */
const refusedActions = /\/disks\/[^/]+\/(export|move)$/;

interface Reference {
  href: string;
  isAction: boolean;
}

/** Every `href` of an answer. */
function referencesOf(text: string): Reference[] {
  const actions = [...text.matchAll(/<actions>(.*?)<\/actions>/gs)].flatMap(([, inside = ""]) => hrefsOf(inside));
  const others = hrefsOf(text.replace(/<actions>.*?<\/actions>/gs, ""));
  return [...actions.map((href) => ({ href, isAction: true })), ...others.map((href) => ({ href, isAction: false }))];
}

const hrefsOf = (text: string): string[] => [...text.matchAll(/ href="([^"]*)"/g)].map(([, href = ""]) => href);

function isAction(href: string, tree: string): boolean {
  try {
    return (
      matchRoute(routeTable(ovirtRoutes), "POST", href.slice(tree.length).split("/").filter(Boolean)).route[0] ===
      "ACTION"
    );
  } catch {
    return false;
  }
}

/** Everything that can be reached from the root by links, and what leads nowhere. */
async function crawl(tree: string): Promise<{ reached: Set<string>; dead: string[] }> {
  const reached = new Set([tree]);
  const dead: string[] = [];
  const left = [tree];
  for (let path = left.pop(); path !== undefined; path = left.pop()) {
    const { status, text } = await ask(engine, "GET", path, { headers: { "all-content": "true" } });
    if (status !== 200) dead.push(`${path}: ${status}`);
    for (const { href, isAction: acts } of referencesOf(text)) {
      const next = href.replace("{query}", "");
      if (reached.has(next)) continue;
      reached.add(next);
      if (!acts) left.push(next);
      else if (!isAction(next, tree) && !refusedActions.test(next)) dead.push(`${next}: no such action`);
    }
  }
  return { reached, dead };
}

it.each(["/ovirt-engine/api", "/api"])("every link below %s leads to something", { timeout: 120_000 }, async (tree) => {
  const { reached, dead } = await crawl(tree);
  expect(dead).toEqual([]);
  const { machine, disk, snapshot, transfer, job, nic, event } = world;
  const wanted = [
    `/vms/${machine}/snapshots/${snapshot}/disks/${disk}`,
    `/vms/${machine}/snapshots/${snapshot}/nics`,
    `/vms/${machine}/nics/${nic}/reporteddevices`,
    `/disks/${disk}/disksnapshots`,
    `/imagetransfers/${transfer}/cancel`,
    `/jobs/${job}`,
    `/events/${event}`,
  ];
  for (const path of wanted) expect([...reached], path).toContain(tree + path);
});

it("the root tells its links in a header, too, also to HEAD", async () => {
  for (const method of ["GET", "HEAD"]) {
    const { status, headers } = await ask(engine, method, "/ovirt-engine/api");
    const links = String(headers["link"]).split(", ");
    expect([status, links]).toEqual([
      200,
      expect.arrayContaining([
        `<${engine.url}/ovirt-engine/api/vms>; rel=vms`,
        `<${engine.url}/ovirt-engine/api/events>; rel=events`,
      ]),
    ]);
    expect(links.some((link) => link.includes("{"))).toBe(false);
  }
  expect((await ask(engine, "GET", "/ovirt-engine/api/vms")).headers["link"]).toBeUndefined();
});

it("what is not yet there has a link to how far it is", async () => {
  const base = "/ovirt-engine/api";
  const xml = "<disk><alias>new</alias><provisioned_size>512</provisioned_size><format>raw</format></disk>";
  const made = await ask(engine, "POST", `${base}/disks`, { xml });
  const href = /<link href="([^"]*)" rel="creation_status"\/>/.exec(made.text)?.[1] ?? "";
  const progress = async (path: string): Promise<string> =>
    (await ask(engine, "GET", path)).text.split("\n").slice(1).join("\n");
  const creation = (status: string): string => `<creation>\n    <status>${status}</status>\n</creation>\n`;
  expect(await progress(href)).toBe(creation("in_progress"));
  const id = String(made.headers["location"]).split("/").at(-1);
  expect(await progress(`/api/disks/${id}/creation_status`)).toContain("<state>in_progress</state>");
  await engine.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [id]);
  expect(await progress(href)).toBe(creation("complete"));
  await engine.sql("UPDATE volumes SET status = 'error' WHERE id = $1", [id]);
  expect(await progress(href)).toBe(creation("failed"));
  const snapshot = await ask(engine, "POST", `${base}/vms/${world.machine}/snapshots`, {
    xml: "<snapshot><description>another</description></snapshot>",
  });
  const below = /<link href="([^"]*)" rel="creation_status"\/>/.exec(snapshot.text)?.[1] ?? "";
  expect(await progress(below)).toBe(creation("in_progress"));
});

it("network interfaces of a snapshot are those of then", async () => {
  const path = `/ovirt-engine/api/vms/${world.machine}`;
  await ask(engine, "PUT", `${path}/nics/${world.nic}`, { xml: "<nic><name>renamed</name></nic>" });
  const { text } = await ask(engine, "GET", `${path}/snapshots/${world.snapshot}/nics`);
  expect([text.includes(world.secret), text.includes(world.mac), text.includes("renamed")]).toEqual([
    true,
    true,
    false,
  ]);
  const kept = await ask(engine, "GET", `/ovirt-engine/api/disks/${world.disk}/disksnapshots`);
  expect(kept.text).toContain(`id="${world.layer}"`);
});
