import { execFileSync, spawn } from "node:child_process";
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { projectNode } from "../../scripts/bootstrap.mjs";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Finished, startTephra, tephraBinary } from "../kit/tephra-command.ts";

const MiB = 1024 * 1024;

/** The real binary against an instance; the service's address comes from the environment. */
const tephra = (instance: Instance, ...args: string[]): Promise<Finished> =>
  startTephra(args, { TEPHRA_URL: instance.url }).finished;

// The launcher says on stderr when it compiles, which it does at most once.
beforeAll(async () => void (await startTephra(["--help"]).finished));

const sha256 = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

describe("tephra", () => {
  let instance: Instance;
  beforeAll(async () => {
    // Every volume that a test has made is still there when the last one begins.
    instance = await startInstance({ workers: 1, config: { quotas: { volumes: -1 } } });
  });
  afterAll(() => instance?.[Symbol.asyncDispose]());

  async function importedVolume(name: string, bytes = randomBytes(3 * MiB)): Promise<string> {
    const source = join(instance.dataDir, `${name}.img`);
    writeFileSync(source, bytes);
    const imported = await tephra(instance, "volume", "import", source, "--name", name, "--wait", "--json");
    expect(imported, imported.stderr).toMatchObject({ status: 0, stderr: "" });
    return imported.json.volume.id;
  }

  it("takes a file to a volume, a backup, a restored volume and back to a file of the same bytes", async () => {
    const bytes = randomBytes(5 * MiB + 12_345);
    const id = await importedVolume("journey", bytes);
    const shown = await tephra(instance, "volume", "show", "journey", "--json");
    expect(shown.json.volume).toMatchObject({ id, status: "available", size: 1, bytes: bytes.length });
    const full = await tephra(instance, "backup", "create", "journey", "--name", "journey-full", "--wait", "--json");
    expect(full.json.backup).toMatchObject({ name: "journey-full", status: "available", is_incremental: false });
    const next = await tephra(instance, "backup", "create", "journey", "--incremental", "--wait", "--json");
    expect(next.json.backup).toMatchObject({ status: "available", is_incremental: true });
    const restored = await tephra(
      instance,
      "backup",
      "restore",
      next.json.backup.id,
      "--name",
      "back",
      "--wait",
      "--json",
    );
    expect(restored.json.restore).toMatchObject({ backup_id: next.json.backup.id, volume_name: "back" });
    const target = join(instance.dataDir, "back.img");
    const exported = await tephra(instance, "volume", "export", "back", target, "--wait", "--json");
    expect(exported.json.operation).toMatchObject({ kind: "volume-export", state: "succeeded" });
    expect(sha256(target)).toBe(createHash("sha256").update(bytes).digest("hex"));
  });

  it("takes a machine with its volumes through backup, destruction and restore", async () => {
    const ids = [await importedVolume("vm-boot"), await importedVolume("vm-data")];
    const files = ids.map((id) => join(instance.volumesDir, `volume-${id}`));
    const before = files.map(sha256);
    const document = join(instance.dataDir, "vm.json");
    writeFileSync(document, JSON.stringify({ cpus: 2 }));
    const made = await tephra(
      instance,
      ...["instance", "create", "--name", "vm", "--boot", "vm-boot", "--configuration", document, "--json"],
    );
    expect(made.json.instance, made.stderr).toMatchObject({ name: "vm", driver: "record", configuration: { cpus: 2 } });
    const attached = await tephra(instance, "instance", "attach", "vm", "vm-data", "--device", "/dev/vdb", "--json");
    expect(attached.json.instance.attachments).toMatchObject([{ volume_id: ids[0] }, { volume_id: ids[1] }]);
    const backup = await tephra(instance, "instance", "backup", "vm", "--name", "night", "--wait", "--json");
    expect(backup.json.backup, backup.stderr).toMatchObject({ name: "night", status: "available" });
    expect(backup.json.backup.backups).toHaveLength(2);
    expect((await tephra(instance, "instance", "backup", "vm", "--name", "night")).stderr).toContain("already exists");
    for (const file of files) writeFileSync(file, randomBytes(3 * MiB));
    const running = await tephra(instance, "instance", "restore", "vm", "night", "--wait");
    expect([running.status, running.stderr]).toEqual([1, expect.stringContaining("must be shut off")]);
    await tephra(instance, "instance", "set", "vm", "--state", "SHUTOFF");
    const restored = await tephra(instance, "instance", "restore", "vm", "night", "--wait", "--json");
    expect(restored, restored.stderr).toMatchObject({ status: 0 });
    expect(files.map(sha256)).toEqual(before);
    expect((await tephra(instance, "instance", "backups", "vm")).stdout).toMatch(/night +available +2 /);
    expect((await tephra(instance, "instance", "list")).stdout).toMatch(/vm +SHUTOFF +record +2/);
    const gone = await tephra(instance, "instance", "delete-backup", "vm", "night", "--wait");
    expect(gone, gone.stderr).toMatchObject({ status: 0, stdout: expect.stringContaining("deleted") });
    expect((await tephra(instance, "instance", "backups", "vm", "--json")).json).toEqual({ backups: [] });
    await tephra(instance, "instance", "detach", "vm", "vm-data");
    expect((await tephra(instance, "instance", "show", "vm")).stdout).toMatch(/^volumes +\S+ \S+$/m);
    expect((await tephra(instance, "instance", "delete", "vm")).status).toBe(0);
    expect((await tephra(instance, "instance", "show", "vm", "--json")).json.error.code).toBe("not_found");
  }, 180_000);

  it("hands a backup over by its record, and finds again what the database has lost", async () => {
    await importedVolume("carried");
    const { json } = await tephra(instance, "backup", "create", "carried", "--name", "record", "--wait", "--json");
    const { id } = json.backup;
    const file = join(instance.dataDir, "record.json");
    const exported = await tephra(instance, "backup", "export", "record", "--output", file);
    expect(exported).toMatchObject({ status: 0, stderr: "" });
    expect((await tephra(instance, "backup", "export", id, "--json")).json).toEqual(
      JSON.parse(readFileSync(file, "utf8")),
    );
    expect((await tephra(instance, "backup", "export", id, "--output", file)).status).toBe(1);
    const lose = () => instance.sql("DELETE FROM backups WHERE id = $1", [id]);
    await lose();
    const imported = await tephra(instance, "backup", "import", file, "--wait", "--json");
    expect(imported.json.backup).toMatchObject({ id, name: "record", status: "available" });
    const twice = await tephra(instance, "backup", "import", file, "--json");
    expect(twice.json.error.message).toBe("Invalid backup: Backup already exists in database.");
    await lose();
    const found = await tephra(instance, "repository", "rescan", "main", "--wait", "--json");
    expect(found.json.operation).toMatchObject({ state: "succeeded", result: { entered: 1, problems: [] } });
    expect((await tephra(instance, "backup", "show", id, "--json")).json.backup).toMatchObject({ status: "available" });
    expect((await tephra(instance, "repository", "rescan", "nowhere")).stderr).toContain("Repository nowhere");
    writeFileSync(file, "{}");
    expect((await tephra(instance, "backup", "import", file, "--json")).json.error.code).toBe("bad_record");
  });

  it("makes a volume again under the id that its backups know", { timeout: 120_000 }, async () => {
    const volume = await importedVolume("lost");
    expect(await tephra(instance, "backup", "create", "lost", "--wait")).toMatchObject({ status: 0 });
    const taken = await tephra(instance, "volume", "adopt", "--id", volume, "--json");
    expect([taken.status, taken.json.error.message]).toEqual([1, expect.stringContaining("has or had the id")]);
    await instance.sql("DELETE FROM volumes WHERE id = $1", [volume]);
    await instance.sql("DELETE FROM audit WHERE resource_id = $1", [volume]);
    const begun = await tephra(instance, "volume", "adopt", "--id", volume, "--name", "lost again", "--json");
    expect(begun.json.operation, begun.stderr).toMatchObject({ kind: "volume-adopt", volume_id: volume });
    const again = async () => (await tephra(instance, "volume", "show", volume, "--json")).json;
    await instance.waitFor(async () => (await again()).volume?.status === "available", { what: "it is adopted" });
    const incremental = ["backup", "create", "lost again", "--incremental", "--wait", "--json"];
    expect((await tephra(instance, ...incremental)).json.backup).toMatchObject({ is_incremental: true });
    const other = ["volume", "import", join(instance.dataDir, "lost.img"), "--id", randomUUID(), "--wait", "--json"];
    expect((await tephra(instance, ...other)).json.volume).toMatchObject({ status: "available" });
  });

  it("verifies a backup, says what is damaged, and rids a repository of what nobody needs", async () => {
    await importedVolume("checked");
    const { json } = await tephra(instance, "backup", "create", "checked", "--name", "checked", "--wait", "--json");
    const { id } = json.backup;
    const sound = await tephra(instance, "backup", "verify", "checked", "--mode", "deep", "--wait", "--json");
    expect(sound.json.operation).toMatchObject({
      state: "succeeded",
      result: { verify: { id, mode: "deep", damaged: [] } },
    });
    expect((await tephra(instance, "backup", "show", id)).stdout).toMatch(/^verified +\d{4}-.* \(deep\)$/m);
    expect((await tephra(instance, "backup", "verify", id, "--mode", "shallow")).status).toBe(2);
    const folder = join(instance.repositoryDir, id.slice(0, 2), id.slice(2, 4), id);
    const object = readdirSync(folder).find((name) => name.endsWith("-00001")) ?? "";
    unlinkSync(join(folder, object));
    const damaged = await tephra(instance, "backup", "verify", id, "--wait");
    expect([damaged.status, damaged.stderr]).toEqual([1, expect.stringContaining(`${object}: it is missing`)]);
    expect((await tephra(instance, "backup", "show", id)).stdout).toMatch(/^damage +volume_.*it is missing$/m);
    const { json: told } = await tephra(instance, "message", "list", "--json");
    expect(told.messages.map((each: { resource_uuid: string }) => each.resource_uuid)).toEqual([id]);
    await tephra(instance, "message", "delete", told.messages[0].id);
    const dry = await tephra(instance, "repository", "reap", "main", "--dry-run", "--wait", "--json");
    expect(dry.json.operation.result).toMatchObject({ dry_run: true, removed: { objects: 0 }, unknown: [] });
    const reaped = await tephra(instance, "repository", "reap", "main", "--wait");
    expect(reaped.stdout).toMatch(/^state +succeeded$/m);
    expect((await tephra(instance, "repository", "reap", "nowhere")).stderr).toContain("Repository nowhere");
  });

  it("sets bandwidth limits by days and times, lists them with what holds now, and removes them", async () => {
    const main = ["repositories", "repository", "main"];
    const times = [
      "--rate",
      "200MiB",
      "--window",
      "mon-fri,sun 08:00-18:00 50MiB",
      "--window",
      "18:00-08:00 unlimited",
    ];
    const set = await tephra(instance, "limit", "set", ...main, ...times, "--timezone", "Asia/Kolkata", "--json");
    expect(set, set.stderr).toMatchObject({ status: 0 });
    const zone = { timezone: "Asia/Kolkata" };
    expect(set.json.limit).toMatchObject({
      bytes_per_second: 200 * MiB,
      windows: [
        {
          from: "08:00",
          to: "18:00",
          days: ["mon", "tue", "wed", "thu", "fri", "sun"],
          bytes_per_second: 50 * MiB,
          ...zone,
        },
        { from: "18:00", to: "08:00", bytes_per_second: null, ...zone },
      ],
    });
    const listed = await tephra(instance, "limit", "list");
    expect(listed.stdout).toMatch(
      /repositories +repository +main +(?:52428800|209715200|unlimited) +209715200 +mon,tue/,
    );
    const refused = await tephra(instance, "limit", "set", ...main, "--window", "8:00-18:00 50MiB");
    expect(refused.status).toBe(1);
    expect(refused.stderr).toContain("windows.0.from");
    expect((await tephra(instance, "limit", "set", ...main, "--window", "workdays 50MiB")).status).toBe(2);
    expect((await tephra(instance, "limit", "remove", ...main)).status).toBe(0);
    expect((await tephra(instance, "limit", "list", "--json")).json).toEqual({ limits: [] });
  });

  it("shows messages, and forgets them when told to", async () => {
    await importedVolume("unlucky");
    const { json } = await tephra(instance, "volume", "show", "unlucky", "--json");
    unlinkSync(join(instance.volumesDir, `volume-${json.volume.id}`));
    const failed = await tephra(instance, "backup", "create", "unlucky", "--wait", "--json");
    expect(failed.status).toBe(1);
    const listed = await tephra(instance, "message", "list", "--json");
    const [message] = listed.json.messages;
    expect(message.user_message).toBe("create backup:Backup driver failed to create backup.");
    expect((await tephra(instance, "message", "list")).stdout).toContain(message.resource_uuid);
    const about = await tephra(instance, "message", "list", "--resource", message.resource_uuid, "--json");
    expect(about.json.messages).toEqual([message]);
    expect((await tephra(instance, "message", "show", message.id, "--json")).json.message).toEqual(message);
    expect((await tephra(instance, "message", "delete", message.id)).status).toBe(0);
    expect((await tephra(instance, "message", "list", "--json")).json.messages).toEqual([]);
  });

  it("lists what a target never took, and sends it again", async () => {
    const [notification, delivery] = [randomUUID(), randomUUID()];
    await instance.sql(
      "INSERT INTO notifications (id, event_type, host, payload, spread) VALUES ($1, 'backup.create.end', 'h', '{}', true)",
      [notification],
    );
    await instance.sql(
      "INSERT INTO deliveries (id, notification_id, target, state, attempts, last_error) VALUES ($1, $2, 'webhook:old', 'dead', 12, 'answered 503')",
      [delivery, notification],
    );
    const { stdout } = await tephra(instance, "notification", "list");
    expect(stdout).toMatch(new RegExp(`${delivery} +backup.create.end +webhook:old +12 +answered 503`));
    const again = await tephra(instance, "notification", "retry", delivery, "--json");
    expect(again).toMatchObject({ status: 0, json: { notifications: [{ id: delivery, state: "pending" }] } });
    expect((await tephra(instance, "notification", "list", "--json")).json.notifications).toEqual([]);
    const pending = await tephra(instance, "notification", "list", "--state", "pending", "--limit", "1", "--json");
    expect(pending.json.notifications).toMatchObject([{ id: delivery, attempts: 0, target: "webhook:old" }]);
    expect((await tephra(instance, "notification", "retry", delivery)).status).toBe(1);
    expect((await tephra(instance, "notification", "list", "--state", "lost")).status).toBe(2);
  });

  it("resolves a path against the working directory of the caller", async () => {
    writeFileSync(join(instance.dataDir, "relative.img"), randomBytes(4096));
    const child = spawn(tephraBinary, ["volume", "import", "relative.img", "--wait", "--json"], {
      cwd: instance.dataDir,
      env: { PATH: `${dirname(projectNode())}:${process.env["PATH"]}`, TEPHRA_URL: instance.url },
      stdio: ["ignore", "ignore", "inherit"],
    });
    expect(await once(child, "close")).toEqual([0, null]);
  });

  it("prints aligned tables, and lets no name steer the terminal", async () => {
    await tephra(instance, "volume", "create", "--size", "1", "--name", "plain\u001b[31mred\u0007", "--wait");
    const { stdout, status } = await tephra(instance, "volume", "list");
    expect(status).toBe(0);
    const [head, ...lines] = stdout.trimEnd().split("\n");
    expect(head).toMatch(/^ID +NAME +STATUS +GiB +CREATED$/);
    const column = head?.indexOf("STATUS") ?? -1;
    for (const line of lines) expect(line.slice(column)).toMatch(/^[a-z]/);
    expect(stdout).toContain("plainred?");
    expect(stdout).not.toContain("\u001b");
  });

  it("takes a name where exactly one matches, and says which ids there are where more do", async () => {
    await importedVolume("twin");
    expect((await tephra(instance, "volume", "show", "twin")).status).toBe(0);
    await importedVolume("twin");
    const ambiguous = await tephra(instance, "volume", "show", "twin", "--json");
    expect(ambiguous).toMatchObject({ status: 1, json: { error: { code: "ambiguous" } } });
    const unknown = await tephra(instance, "backup", "create", "nobody", "--json");
    expect(unknown).toMatchObject({ status: 1, json: { error: { code: "not_found" } } });
    expect(unknown.stderr).toContain('No volume has the id or name "nobody"');
  });

  it("makes, shows and deletes snapshots, and waits for each", async () => {
    await importedVolume("frozen");
    const made = await tephra(instance, "snapshot", "create", "frozen", "--name", "moment", "--wait", "--json");
    expect(made.json.snapshot).toMatchObject({ name: "moment", status: "available" });
    const backup = await tephra(instance, "backup", "create", "frozen", "--snapshot", "moment", "--wait", "--json");
    expect(backup.json.backup).toMatchObject({ status: "available", snapshot_id: made.json.snapshot.id });
    expect((await tephra(instance, "snapshot", "list", "--json")).json.snapshots).toHaveLength(1);
    const gone = await tephra(instance, "snapshot", "delete", "moment", "--wait", "--json");
    expect(gone.json.snapshot).toEqual({ id: made.json.snapshot.id, status: "deleted" });
    expect((await tephra(instance, "snapshot", "show", made.json.snapshot.id)).status).toBe(1);
    const deleted = await tephra(instance, "backup", "delete", backup.json.backup.id, "--wait", "--json");
    expect(deleted.json.backup.status).toBe("deleted");
  });

  it("completes commands, options, files and the names of what there is", async () => {
    const id = await importedVolume("completed-disk");
    const hostile = await tephra(
      instance,
      "volume",
      "create",
      "--size",
      "1",
      "--name",
      "completed $(reboot)",
      "--json",
    );
    // Names of a service that is slow are left out, so that what has names is asked for until they are there.
    const completed = async (...words: string[]): Promise<string[]> => {
      const { stdout, stderr } = await tephra(instance, "complete", "--", ...words);
      expect(stderr).toBe("");
      return stdout.trimEnd().split("\n");
    };
    const named = (...words: string[]) => expect.poll(() => completed(...words), { timeout: 30_000 });
    expect(await completed("backup", "sh")).toEqual([expect.stringMatching(/^show\t/), ":4"]);
    expect(await completed("backup", "verify", "x", "--mode", "d")).toEqual(["deep\t", "drill\t", ":4"]);
    await named("--url", instance.url, "backup", "create", "--wait", "completed").toEqual([
      `completed-disk\t${id}`,
      ":4",
    ]);
    // A name that a shell would take for more than a name is completed to its id.
    const shown = `${hostile.json.volume.id}\tcompleted $(reboot)`;
    await named("volume", "show", hostile.json.volume.id.slice(0, 8)).toEqual([shown, ":4"]);
    await named("operation", "list", "--volume", "completed").toEqual([`completed-disk\t${id}`, ":4"]);
    // Files are the shell's.
    expect(await completed("volume", "import", "/tm")).toEqual([":0"]);
    expect(await completed("backup", "export", "x", "--output", "")).toEqual([":0"]);
    // Of a service that is away nothing is known, and nothing said.
    expect(await completed("--url", "http://127.0.0.1:1", "volume", "show", "comp")).toEqual([":4"]);
  });

  it("gives bash a function that completes", async () => {
    const { stdout } = await tephra(instance, "completion", "bash");
    // What bash-completion gives every such function: the words of the line.
    const line = `_get_comp_words_by_ref() { words=("\${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=\${words[cword]}; prev=\${words[cword-1]}; }
      compopt() { :; }
      tephra() { ${JSON.stringify(tephraBinary)} "$@"; }
      COMP_WORDS=(tephra backup ver); COMP_CWORD=2; __tephra_complete; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const env = { PATH: `${dirname(projectNode())}:${process.env["PATH"]}` };
    expect(execFileSync("bash", ["-c", `${stdout}\n${line}`], { encoding: "utf8", env }).trim()).toBe("verify");
  });

  it("ends with 1 and the reason when the work fails", async () => {
    const missing = join(instance.dataDir, "missing.img");
    const failed = await tephra(instance, "volume", "import", missing, "--wait", "--json");
    expect(failed.status).toBe(1);
    expect(failed.json.error).toMatchObject({ code: "operation_failed", operation: { state: "failed" } });
    expect(failed.json.error.operation.fail_reason).not.toBe("");
    expect(failed.stderr).toContain(failed.json.error.operation.fail_reason);
  });

  it("passes on what the service refuses", async () => {
    const outside = await tephra(instance, "volume", "import", "/etc/passwd", "--json");
    expect(outside).toMatchObject({ status: 1, json: { error: { code: "badRequest", status: 400 } } });
    expect(outside.stderr).toContain(outside.json.error.message);
  });

  it("shows the service and its operations", async () => {
    const { json } = await tephra(instance, "status", "--json");
    expect(json.status).toMatchObject({ url: instance.url, ready: true, figures: { workers: 1 } });
    expect(json.status.versions).toEqual([expect.stringMatching(/^3\.\d+ to 3\.\d+$/)]);
    const listed = await tephra(instance, "operation", "list", "--state", "succeeded", "--json");
    const newest = listed.json.operations[0];
    const shown = (await tephra(instance, "operation", "show", newest.id, "--json")).json.operation;
    const actions = ["cancel", "retry"].map((name) => ({ name, allowed: false }));
    expect(shown).toMatchObject({ ...newest, actions });
    expect((await tephra(instance, "status")).stdout).toMatch(/^url +http.*\nready +yes\n/);
  });

  it("ends with 2 on a usage error, as JSON too", async () => {
    const usage = await tephra(instance, "volume", "create", "--size", "none", "--json");
    expect(usage).toMatchObject({ status: 2, json: { error: { code: "usage" } } });
    expect((await tephra(instance, "volume", "create")).status).toBe(2);
    expect((await tephra(instance, "volcano")).status).toBe(2);
    expect((await tephra(instance, "--help")).status).toBe(0);
  });

  it("says so when nobody answers", async () => {
    const { status, json } = await startTephra(["volume", "list", "--json"], { TEPHRA_URL: "http://127.0.0.1:9" })
      .finished;
    expect({ status, json }).toMatchObject({ status: 1, json: { error: { code: "unreachable" } } });
  });
});

describe("tephra --wait", () => {
  it("goes on through a restart of the service, and gives up only when told to", { timeout: 60_000 }, async () => {
    await using instance = await startInstance({ workers: 1 });
    await instance.workers[0]?.stop();
    const env = { TEPHRA_URL: instance.url };
    const impatient = await startTephra(
      ["volume", "create", "--size", "1", "--wait", "--timeout", "0.5", "--json"],
      env,
    ).finished;
    expect(impatient).toMatchObject({ status: 1, json: { error: { code: "timeout" } } });
    const waiting = startTephra(["volume", "create", "--size", "1", "--name", "late", "--wait", "--json"], env);
    const asked = () => instance.sql("SELECT 1 FROM volumes WHERE name = 'late'").then((rows) => rows.length === 1);
    await instance.waitFor(asked, { what: "the volume is asked for" });
    // The row is seen before the answer that tells of it is on its way: what is asked now is answered behind that.
    for (let i = 0; i < 3; i += 1) expect((await instance.request("GET", "/readyz")).status).toBe(200);
    await instance.killApi();
    await instance.startWorker();
    await instance.startApi();
    const { status, json, stderr } = await waiting.finished;
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(json.volume).toMatchObject({ name: "late", status: "available", bytes: 1024 * MiB });
    const file = join(instance.volumesDir, `volume-${json.volume.id}`);
    expect(existsSync(file)).toBe(true);
  });
});
