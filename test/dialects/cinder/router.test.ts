import { expect, it } from "vitest";
import { readCases } from "./conformance/exchange.ts";
import { openStage, type Stage } from "./conformance/fixtures.ts";
import { differing, play, type Verdict } from "./conformance/play.ts";

/** Backups as the measured router had them, by the names that the requests have for them. */
async function makeBackups({ names, ask, settled }: Stage): Promise<void> {
  const make = async (as: "a" | "b" | "admin", name: string, fields: object, minor = 0): Promise<void> => {
    const filled = JSON.parse(names.fill(JSON.stringify(fields))) as object;
    const { body } = await ask(as, "POST", "backups", { backup: filled }, minor);
    names.set(name, body.backup.id);
    await settled();
  };
  const { body } = await ask("b", "POST", "volumes", { volume: { size: 1, name: "b2" } });
  names.set("vol_b2", body.volume.id);
  await settled();
  await make("a", "full1", { volume_id: "{vol_a1}", name: "{run}-full1", description: "first one" });
  const metadata = { k1: "v1", k2: "" };
  await make("a", "fullmd", { volume_id: "{vol_a2}", name: "{run}-fullmd", container: "box-{run}", metadata }, 43);
  await make("a", "inc1", { volume_id: "{vol_a1}", name: "{run}-inc1", incremental: true });
  await make("a", "inc2", { volume_id: "{vol_a1}", name: "{run}-inc2", incremental: true });
  await make("a", "snapbk", { volume_id: "{vol_a2}", name: "{run}-snapbk", snapshot_id: "{snap_a2}" });
  await make("a", "forcebk", { volume_id: "{vol_inuse}", force: true });
  await make("a", "azbk", { volume_id: "{vol_fresh}", name: "{run}-azbk" });
  await make("a", "errbk", { volume_id: "{vol_fresh}", name: "{run}-err" });
  await make("a", "emptyname", { volume_id: "{vol_fresh}", name: "", description: "" });
  await make("b", "bfull", { volume_id: "{vol_b1}", name: "{run}-bfull" });
  await make("admin", "adm1", { volume_id: "{vol_adm}", name: "{run}-adm1" });
  await ask("admin", "POST", `backups/${names.get("errbk")}/action`, { "os-reset_status": { status: "error" } });
  for (const name of ["full1", "vol_a1", "vol_a2"]) {
    names.set(`${name}_upper`, names.get(name).toUpperCase());
    names.set(`${name}_undashed`, names.get(name).replaceAll("-", ""));
  }
}

/** Where we part on purpose: docs/cinder-differences.md, "Behind a proxy". */
const onPurpose = ["discovery.64"];

it("answers as Cinder's own router, to every kind of wrong request and list", { timeout: 600_000 }, async () => {
  await using stage = await openStage();
  await makeBackups(stage);
  const verdicts: Verdict[] = [];
  for (const measured of readCases("cinder-router")) verdicts.push(await play(stage, measured));
  expect(differing(verdicts.filter(({ id }) => !onPurpose.includes(id)))).toEqual([]);
  expect(verdicts.filter(({ id, whole }) => onPurpose.includes(id) && !whole).map(({ id }) => id)).toEqual(onPurpose);
  expect(verdicts.length).toBeGreaterThan(500);
});
