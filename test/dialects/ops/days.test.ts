import { randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import { startTephra } from "../../kit/tephra-command.ts";
import { projectA as a, askAs, auth, projectB as b, startApiOnly, type Who } from "../api-only.ts";

const config = { auth, log_level: "warn" };

interface Made {
  /** UTC. */
  at: string;
  triedAt?: string;
  status?: string;
  parent?: string;
  damage?: string;
  deletedAt?: string;
  stored?: number | null;
}

it("a calendar tells for each local day what one can go back to, and what was pruned, failed or missed", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const addVolume = async (createdAt: string, project = a): Promise<string> => {
    const [row] = await instance.sql(
      `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone, created_at)
       VALUES (gen_random_uuid(), $1, 'u', 'v', 'available', 1, 4096, 'files', 'nova', $2) RETURNING id`,
      [project, createdAt],
    );
    return row.id;
  };
  const addBackup = async (volume: string, made: Made): Promise<string> => {
    const { at, triedAt = at, status = "available", parent = null, damage = null, deletedAt = null, stored = 1 } = made;
    const id = randomUUID();
    await instance.sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, status, damage, parent_id, size_gib, repository, data_timestamp, created_at,
         deleted_at, stored_bytes)
       SELECT $1, project_id, 'u', id, $3, $4, $5, 1, 'main', $6, $7, $8, $9 FROM volumes WHERE id = $2`,
      [id, volume, status, damage, parent, at, triedAt, deletedAt, stored],
    );
    return id;
  };
  const daysOf = async (who: Who, query: string) => {
    const { status, body, text } = await ask(who, "GET", `/ops/protection/days?${query}`);
    expect(status, text).toBe(200);
    return body;
  };

  // Clocks go back on 25 October 2026 in Berlin: that day has 25 hours.
  const berlin = "from=2026-10-20&to=2026-10-29&tz=Europe/Berlin";
  const volume = await addVolume("2026-10-21T12:00:00Z");
  // 22 October there, since it is past midnight; a failed one of the same day does not matter.
  await addBackup(volume, { at: "2026-10-21T22:30:00Z" });
  await addBackup(volume, { at: "2026-10-22T10:00:00Z", status: "error", stored: null });
  await addBackup(volume, { at: "2026-10-23T10:00:00Z", status: "deleted", deletedAt: "2026-10-30T00:00:00Z" });
  await addBackup(volume, { at: "2026-10-24T10:00:00Z", status: "error", stored: null });
  // The last hour of the long day, and the first one of the next.
  await addBackup(volume, { at: "2026-10-25T22:59:59Z" });
  await addBackup(volume, { at: "2026-10-25T23:00:00Z", status: "deleting" });
  // A deleted failure is nothing that was pruned.
  await addBackup(volume, {
    at: "2026-10-27T10:00:00Z",
    status: "deleted",
    deletedAt: "2026-10-30T00:00:00Z",
    stored: null,
  });
  const spoilt = await addBackup(volume, { at: "2026-10-28T10:00:00Z", damage: "An object is gone." });
  await addBackup(volume, { at: "2026-10-29T10:00:00Z", parent: spoilt });
  const told = await daysOf("reader", `${berlin}&volume_id=${volume}`);
  expect(told).toEqual({ from: "2026-10-20", volumes: [{ id: volume, days: "-.RpFRp.FF" }] });
  // In UTC the first one is of the day before.
  const utc = await daysOf("observer", `from=2026-10-21&to=2026-10-26&volume_id=${volume}`);
  expect(utc.volumes[0].days).toBe("RFpFR.");

  // What a policy missed, or skipped, where nothing better is known of the day; of exclusions, as long as they last.
  const schedule = { cron: "0 2 * * *", timezone: "UTC" };
  const { body } = await ask("admin", "POST", "/ops/policies", {
    policy: { name: "nightly", schedule, project_id: a },
  });
  const missing = await addVolume("2026-10-01T00:00:00Z");
  const assigned = { assignment: { volume_id: missing } };
  expect((await ask("member", "POST", `/ops/policies/${body.policy.id}/assignments`, assigned)).status).toBe(201);
  const run = "INSERT INTO policy_runs (id, policy_id, due_at, scheduled, state) VALUES ($1, $2, $3, true, $4)";
  await instance.sql(run, [randomUUID(), body.policy.id, "2026-10-21T02:00:00Z", "missed"]);
  await instance.sql(run, [randomUUID(), body.policy.id, "2026-10-22T02:00:00Z", "missed"]);
  const began = randomUUID();
  await instance.sql(run, [began, body.policy.id, "2026-10-24T02:00:00Z", "ran"]);
  await instance.sql(
    `INSERT INTO policy_run_items (id, run_id, policy_id, project_id, volume_id, starts_at, state)
     VALUES (gen_random_uuid(), $1, $2, $3, $4, '2026-10-24T02:10:00Z', 'skipped')`,
    [began, body.policy.id, a, missing],
  );
  await addBackup(missing, { at: "2026-10-22T05:00:00Z" });
  expect((await ask("member", "PUT", `/ops/volumes/${missing}/exclusion`, { reason: "moved" })).status).toBe(200);
  const excluded = "UPDATE volume_exclusions SET created_at = '2026-10-27T05:00:00Z', until = '2026-10-28T05:00:00Z'";
  await instance.sql(excluded);
  const both = await daysOf("reader", `from=2026-10-20&to=2026-10-29&volume_id=${missing},${volume},${missing}`);
  expect(both.volumes).toEqual([
    { id: missing, days: ".MR.M..XX." },
    { id: volume, days: expect.any(String) },
  ]);

  // Today is the last day of the 35 that are told where none are asked for.
  const usual = await daysOf("reader", `volume_id=${missing}`);
  expect(usual.volumes[0].days).toHaveLength(35);
  const [{ today }] = await instance.sql(
    "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '34 days', 'YYYY-MM-DD') AS today",
  );
  expect(usual.from).toBe(today);

  // Other projects' volumes, and unknown ones, are left out; admins see all.
  const foreign = await addVolume("2026-10-01T00:00:00Z", b);
  const three = `${foreign},${volume},${randomUUID()}`;
  const idsOf = async (who: Who) =>
    (await daysOf(who, `${berlin}&volume_id=${three}`)).volumes.map(({ id }: { id: string }) => id);
  expect([await idsOf("stranger"), await idsOf("member"), await idsOf("admin")]).toEqual([
    [foreign],
    [volume],
    [foreign, volume],
  ]);

  const refused: [string, string][] = [
    ["", "volume_id: Invalid input"],
    ["volume_id=x", "volume_id.0: is not a uuid"],
    [`volume_id=${Array.from({ length: 101 }, () => volume).join(",")}`, "volume_id: Too big"],
    [`volume_id=${volume}&tz=Mars/Olympus`, 'tz: there is no time zone "Mars/Olympus"'],
    [`volume_id=${volume}&from=yesterday`, "from: Invalid ISO date"],
    [`volume_id=${volume}&from=1969-12-31`, "from: is not between 1970-01-01 and 2999-12-31"],
    [`volume_id=${volume}&from=2026-02-02&to=2026-02-01`, "from: is after to"],
    [`volume_id=${volume}&from=2025-01-31&to=2026-02-01`, "from: is more than 366 days before to"],
    [`volume_id=${volume}&colour=red`, "colour"],
  ];
  for (const [query, words] of refused) {
    const { status, text } = await ask("reader", "GET", `/ops/protection/days?${query}`);
    expect([query, status]).toEqual([query, 400]);
    expect(JSON.parse(text).badRequest.message).toContain(words);
  }

  const command = ["volume", "calendar", volume, "--from", "2026-10-20", "--to", "2026-10-29"];
  const where = ["--timezone", "Europe/Berlin", "--url", instance.url, "--token", "reader"];
  const { status, stdout, stderr } = await startTephra([...command, ...where]).finished;
  expect(status, stderr).toBe(0);
  expect(stdout).toContain("-.RpFRp.FF");
});
