import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import {
  projectA as a,
  askAs,
  auth,
  projectB as b,
  fingerprint,
  setStatus,
  startApiOnly,
  tokens,
  type Who,
} from "../api-only.ts";

const unknown = "11111111-2222-3333-4444-555555555555";

const config = {
  auth,
  log_level: "warn",
};

const nightly = { cron: "0 2 * * *", timezone: "Europe/Berlin", window_minutes: 120, jitter_minutes: 30 };

async function makeVolume(instance: Instance, who: Who, metadata: Record<string, string> = {}): Promise<string> {
  const { project_id } = tokens[who];
  const volume = { size: 1, metadata };
  const made = await instance.request("POST", `/v3/${project_id}/volumes`, { volume }, { "x-auth-token": who });
  expect(made.status, made.text).toBe(202);
  await setStatus(instance, "volumes", made.body.volume.id, "available");
  return made.body.volume.id as string;
}

it("makes, shows, changes and removes policies", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const retention = { keep_last: 3, keep_daily: 7, keep_within: "36h" };
  const made = await ask("member", "POST", "/ops/policies", {
    policy: { name: "nightly", schedule: nightly, retention },
  });
  expect(made.status, made.text).toBe(201);
  const { policy } = made.body;
  expect(policy).toMatchObject({
    project_id: a,
    user_id: "user-of-member",
    name: "nightly",
    description: null,
    enabled: true,
    schedule: nightly,
    kind: { full_every: 7 },
    retention: { ...retention, min_good: 1 },
    squash: null,
    repository: null,
    force: true,
    target_hours: null,
    updated_at: null,
  });
  expect(policy.next_runs).toHaveLength(5);
  expect(policy.next_at).toBe(policy.next_runs[0]);
  const local = new Intl.DateTimeFormat("de", { timeZone: "Europe/Berlin", hour: "2-digit", minute: "2-digit" });
  expect(local.format(new Date(policy.next_at))).toMatch(/^0[23]:00$/);
  expect((await ask("reader", "GET", `/ops/policies/${policy.id}`)).body).toEqual({ policy });

  const off = await ask("member", "PUT", `/ops/policies/${policy.id}`, { policy: { enabled: false, retention: null } });
  expect(off.body.policy).toMatchObject({ name: "nightly", enabled: false, retention: null, next_at: null });
  const on = await ask("member", "PUT", `/ops/policies/${policy.id}`, {
    policy: { enabled: true, kind: { full_on: "0 2 * * 0" }, target_hours: 30 },
  });
  expect(on.body.policy).toMatchObject({ kind: { full_on: "0 2 * * 0" }, target_hours: 30, next_at: policy.next_at });

  const published = await ask("admin", "POST", "/ops/policies", {
    policy: { name: "nightly", project_id: null, schedule: nightly },
  });
  expect(published.body.policy.project_id).toBeNull();
  const seen = async (who: Who) =>
    (await ask(who, "GET", "/ops/policies")).body.policies.map((each: { id: string }) => each.id);
  expect(await seen("reader")).toEqual([published.body.policy.id, policy.id]);
  expect(await seen("stranger")).toEqual([published.body.policy.id]);

  expect((await ask("member", "DELETE", `/ops/policies/${policy.id}`)).status).toBe(204);
  expect((await ask("member", "GET", `/ops/policies/${policy.id}`)).status).toBe(404);
});

it("lets admins publish, members have their own, and readers look", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const policy = { name: "p", schedule: nightly };
  const published = (await ask("admin", "POST", "/ops/policies", { policy: { ...policy, project_id: null } })).body
    .policy;
  const own = (await ask("member", "POST", "/ops/policies", { policy })).body.policy;
  const volume = await makeVolume(instance, "member");
  const before = await fingerprint(instance);
  const refused: [Who, string, string, unknown, number][] = [
    ["reader", "POST", "/ops/policies", { policy }, 403],
    ["member", "POST", "/ops/policies", { policy: { ...policy, project_id: null } }, 403],
    ["member", "POST", "/ops/policies", { policy: { ...policy, project_id: b } }, 403],
    ["member", "PUT", `/ops/policies/${published.id}`, { policy: { name: "q" } }, 403],
    ["member", "DELETE", `/ops/policies/${published.id}`, undefined, 403],
    ["reader", "PUT", `/ops/policies/${own.id}`, { policy: { name: "q" } }, 403],
    ["reader", "POST", `/ops/policies/${own.id}/assignments`, { assignment: { volume_id: volume } }, 403],
    ["stranger", "GET", `/ops/policies/${own.id}`, undefined, 404],
    ["stranger", "PUT", `/ops/policies/${own.id}`, { policy: { name: "q" } }, 404],
    ["stranger", "POST", `/ops/policies/${own.id}/assignments`, { assignment: { volume_id: volume } }, 404],
    ["stranger", "POST", `/ops/policies/${published.id}/assignments`, { assignment: { volume_id: volume } }, 400],
    ["stranger", "POST", `/ops/policies/${published.id}/assignments`, { assignment: { project_id: a } }, 400],
  ];
  for (const [who, method, path, body, status] of refused) {
    const reply = await ask(who, method, path, body);
    expect([who, method, path, reply.status, reply.text]).toEqual([who, method, path, status, reply.text]);
  }
  expect(await fingerprint(instance)).toEqual(before);
});

it("refuses rules that make no sense, with the key and the reason", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const own = (await ask("member", "POST", "/ops/policies", { policy: { name: "own", schedule: nightly } })).body
    .policy;
  const theirs = await makeVolume(instance, "stranger");
  const before = await fingerprint(instance);
  const wrong: [string, object, string][] = [
    [
      "an unknown time zone",
      { schedule: { ...nightly, timezone: "Mars/Olympus" } },
      'policy.schedule.timezone: there is no time zone "Mars/Olympus"',
    ],
    [
      "a cron that cannot be read",
      { schedule: { ...nightly, cron: "0 25 * * *" } },
      "policy.schedule.cron: cannot be read: Invalid value for hour: 25",
    ],
    [
      "a cron with seconds",
      { schedule: { ...nightly, cron: "0 0 2 * * *" } },
      "policy.schedule.cron: has to have five fields",
    ],
    [
      "a cron that never comes",
      { schedule: { ...nightly, cron: "0 0 30 2 *" } },
      "policy.schedule.cron: names a time that never comes",
    ],
    [
      "windows that overlap",
      { schedule: { ...nightly, cron: "0 * * * *" } },
      "policy.schedule.window_minutes: windows overlap: each is 120 minutes long, and runs are as little as 60 minutes apart",
    ],
    [
      "windows that overlap in spring",
      { schedule: { ...nightly, window_minutes: 1_440 } },
      "as little as 1380 minutes apart",
    ],
    [
      "more jitter than window",
      { schedule: { ...nightly, jitter_minutes: 121 } },
      "policy.schedule.jitter_minutes: is longer than the window",
    ],
    ["negative jitter", { schedule: { ...nightly, jitter_minutes: -1 } }, "policy.schedule.jitter_minutes: "],
    [
      "a full backup that never comes",
      { kind: { full_on: "0 0 31 2 *" } },
      "policy.kind.full_on: names a time that never comes",
    ],
    ["no full backup ever", { kind: { full_every: 0 } }, "policy.kind"],
    ["a retention that keeps nothing", { retention: { keep_last: 0 } }, "policy.retention: would keep nothing"],
    ["an empty retention", { retention: {} }, "policy.retention: would keep nothing"],
    ["a negative limit", { retention: { keep_daily: -1 } }, "policy.retention.keep_daily: "],
    ["nothing good kept", { retention: { keep_last: 1, min_good: 0 } }, "policy.retention.min_good: "],
    [
      "a span that is none",
      { retention: { keep_within: "soon" } },
      "policy.retention.keep_within: is no number of hours, days or weeks",
    ],
    ["an unknown repository", { repository: "nowhere" }, 'policy.repository: there is no repository "nowhere"'],
    ["an unknown way to verify", { verify: { mode: "thorough" } }, "policy.verify.mode: "],
    ["a sample of nothing", { verify: { mode: "deep", sample: 0 } }, "policy.verify.sample: "],
    ["verifying no run", { verify: { mode: "deep", every: 0 } }, "policy.verify.every: "],
    ["an unknown priority", { priority: "urgent" }, "policy.priority: "],
    ["high priority", { priority: "high" }, "policy.priority: only admins give high priority"],
    ["a negative target", { target_hours: -1 }, "policy.target_hours: "],
    ["a name that is taken", { name: "own" }, 'policy.name: there is a policy "own" already'],
    ["an unknown key", { colour: "red" }, "colour"],
  ];
  for (const [what, rules, reason] of wrong) {
    const made = await ask("member", "POST", "/ops/policies", { policy: { name: "p", schedule: nightly, ...rules } });
    expect([what, made.status, made.text]).toEqual([
      what,
      400,
      expect.stringContaining(JSON.stringify(reason).slice(1, -1)),
    ]);
    if (what === "a name that is taken") continue;
    const changed = await ask("member", "PUT", `/ops/policies/${own.id}`, { policy: rules });
    expect([what, changed.status, changed.text]).toEqual([
      what,
      400,
      expect.stringContaining(JSON.stringify(reason).slice(1, -1)),
    ]);
  }
  const subjects: [object, string][] = [
    [{ volume_id: theirs }, `assignment.volume_id: there is no volume ${theirs} in this project`],
    [{ volume_id: unknown }, `assignment.volume_id: there is no volume ${unknown} in this project`],
    [{ instance_id: unknown }, `assignment.instance_id: there is no instance ${unknown} in this project`],
    [{ project_id: b }, "assignment.project_id: is another project"],
    [{}, "assignment: names exactly one of volume_id, instance_id and project_id"],
    [{ volume_id: unknown, project_id: a }, "names exactly one of"],
  ];
  for (const [assignment, reason] of subjects) {
    const reply = await ask("member", "POST", `/ops/policies/${own.id}/assignments`, { assignment });
    expect([reply.status, reply.text]).toEqual([400, expect.stringContaining(reason)]);
  }
  const byAdmin = await ask("admin", "POST", `/ops/policies/${own.id}/assignments`, {
    assignment: { volume_id: theirs },
  });
  expect([byAdmin.status, byAdmin.text]).toEqual([
    400,
    expect.stringContaining("assignment.volume_id: is of another project"),
  ]);
  expect(await fingerprint(instance)).toEqual(before);
});

it("applies the most specific policy to a volume, and says which and why", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const make = async (who: Who, name: string, more: object = {}): Promise<string> => {
    const made = await ask(who, "POST", "/ops/policies", { policy: { name, schedule: nightly, ...more } });
    expect(made.status, made.text).toBe(201);
    return made.body.policy.id;
  };
  const [ofVolume, ofMachine, ofProject, tagged] = [
    await make("member", "of volume"),
    await make("member", "of machine"),
    await make("admin", "of project", { project_id: null }),
    await make("admin", "tagged", { project_id: null }),
  ];
  const volume = await makeVolume(instance, "member", { "tephra:policy": "tagged" });
  const made = { name: "machine", power_state: "SHUTOFF", boot_volume_id: volume };
  const machine = (await ask("member", "POST", "/ops/instances", { instance: made })).body.instance.id as string;
  const told = async () => (await ask("reader", "GET", `/ops/volumes/${volume}/policy`)).body;
  const assign = async (policy: string, assignment: object): Promise<string> => {
    const reply = await ask("member", "POST", `/ops/policies/${policy}/assignments`, { assignment });
    expect(reply.status, reply.text).toBe(201);
    return reply.body.assignment.id;
  };
  const project = await assign(ofProject, { project_id: a });
  await assign(ofMachine, { instance_id: machine });
  const own = await assign(ofVolume, { volume_id: volume });
  expect(await told()).toEqual({
    policy: { id: ofVolume, name: "of volume" },
    by: "volume",
    why: "The policy is assigned to the volume.",
    candidates: [
      { by: "volume", policy_id: ofVolume, name: "of volume" },
      { by: "metadata", policy_id: tagged, name: "tagged" },
      { by: "machine", policy_id: ofMachine, name: "of machine" },
      { by: "project", policy_id: ofProject, name: "of project" },
    ],
  });
  expect((await ask("member", "DELETE", `/ops/policies/${ofVolume}/assignments/${own}`)).status).toBe(204);
  expect(await told()).toMatchObject({ policy: { id: tagged }, by: "metadata" });
  const mine = await make("member", "tagged");
  expect(await told()).toMatchObject({ policy: { id: mine }, by: "metadata" });
  const renamed = { metadata: { "tephra:policy": "mistyped" } };
  expect((await ask("member", "PUT", `/v3/${a}/volumes/${volume}/metadata`, renamed)).status).toBe(200);
  expect(await told()).toMatchObject({
    by: "machine",
    why: 'The policy is assigned to the machine that the volume is a disk of. Its metadata names "mistyped", which is unknown.',
  });
  // Removing the policy of the machine, its assignments become another's.
  const inUse = await ask("member", "DELETE", `/ops/policies/${ofMachine}`);
  expect([inUse.status, inUse.text]).toEqual([400, expect.stringContaining("the policy has 1 assignments")]);
  expect((await ask("member", "DELETE", `/ops/policies/${ofMachine}?move_to=${mine}`)).status).toBe(204);
  expect(await told()).toMatchObject({ policy: { id: mine }, by: "machine" });
  expect((await ask("member", "DELETE", `/ops/policies/${mine}?assignments=remove`)).status).toBe(204);
  expect(await told()).toMatchObject({ policy: { id: ofProject }, by: "project" });
  const replaced = await ask("member", "POST", `/ops/policies/${ofVolume}/assignments`, {
    assignment: { project_id: a },
  });
  expect(replaced.body).toMatchObject({
    replaced_policy_id: ofProject,
    assignment: { policy_id: ofVolume, scope: "project" },
  });
  expect((await ask("member", "DELETE", `/ops/policies/${ofProject}/assignments/${project}`)).status).toBe(404);
  expect((await ask("member", "DELETE", `/ops/policies/${ofVolume}?assignments=remove`)).status).toBe(204);
  expect(await told()).toMatchObject({ policy: null, by: null, candidates: [] });
});

it("an assignment ends with the volume, and when the volume goes to another project", async () => {
  await using instance = await startApiOnly({ config });
  const ask = askAs(instance);
  const { id } = (await ask("member", "POST", "/ops/policies", { policy: { name: "p", schedule: nightly } })).body
    .policy;
  const [given, gone] = [await makeVolume(instance, "member"), await makeVolume(instance, "member")];
  for (const volume_id of [given, gone]) {
    expect((await ask("member", "POST", `/ops/policies/${id}/assignments`, { assignment: { volume_id } })).status).toBe(
      201,
    );
  }
  await instance.sql("UPDATE volumes SET project_id = $1 WHERE id = $2", [b, given]);
  await instance.sql("DELETE FROM volumes WHERE id = $1", [gone]);
  expect((await ask("stranger", "GET", `/ops/volumes/${given}/policy`)).body).toMatchObject({
    policy: null,
    candidates: [],
  });
  const left = (await ask("member", "GET", `/ops/policies/${id}/assignments`)).body.assignments;
  expect(left.map((each: { volume_id: string }) => each.volume_id)).toEqual([given]);
});
