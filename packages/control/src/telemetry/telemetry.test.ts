import { spawnSync } from "node:child_process";
import { PassThrough } from "node:stream";
import { pino } from "pino";
import { expect, test } from "vitest";
import { logVitals, openLog, type Vitals } from "./telemetry.ts";

test("a process logs what it weighs, and how long its event loop was blocked since the last line", async () => {
  const lines = new PassThrough();
  const blocker = setInterval(() => {
    const end = performance.now() + 60;
    while (performance.now() < end);
  }, 100);
  logVitals(pino(lines), 500);
  const keepAlive = setInterval(() => {}, 1_000);
  const [line] = (await lines.take(1).toArray()) as Buffer[];
  clearInterval(blocker);
  clearInterval(keepAlive);
  const vitals = JSON.parse(String(line)) as Vitals & { event: string };
  expect(vitals.event).toBe("process.vitals");
  expect(vitals.rss_mib).toBeGreaterThan(vitals.heap_mib);
  expect(vitals.loop_delay_max_ms).toBeGreaterThan(20);
  expect(vitals.descriptors === null || vitals.descriptors > 2).toBe(true);
});

test("of an error the log has type, message, stack and code, of its causes too, and nothing that a library hung on it", () => {
  const texts: string[] = [];
  const log = openLog({ log_level: "info", hostName: "here" }, "test", { write: (line) => texts.push(line) });
  const command = { name: "auth", args: ["a secret"] };
  const refused = Object.assign(
    new RangeError("WRONGPASS", { cause: Object.assign(new Error("inner"), { command }) }),
    {
      code: "NOAUTH",
      command,
    },
  );
  log.info({ err: refused });
  log.child({}).info(refused);
  log.info({ err: new AggregateError([refused], "several") });
  log.info({ err: { message: "no error", command } });
  expect(texts).toHaveLength(4);
  for (const text of texts) expect(text).not.toContain("a secret");
  const [one, two, several] = texts.map((text) => JSON.parse(text).err);
  expect(one).toEqual({
    type: "RangeError",
    message: "WRONGPASS: inner",
    stack: expect.stringMatching(/WRONGPASS.*telemetry\.test\.ts.*caused by: Error: inner/s),
    code: "NOAUTH",
  });
  expect(two).toEqual(one);
  expect(several).toMatchObject({ type: "AggregateError", message: "several", errors: [one] });
});

test("an error that nobody caught ends a program with one line of its log, a rejection too", () => {
  const program = `
    import { logCrash, openLog } from ${JSON.stringify(import.meta.resolve("./telemetry.ts"))};
    logCrash(openLog({ log_level: "info", hostName: "here" }, "test"));
    const refused = Object.assign(new Error("refused"), { command: ["a secret"] });`;
  for (const end of ["setImmediate(() => { throw refused; });", "void Promise.reject(refused);", "throw refused;"]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", `${program} ${end}`], {
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({ status: 1, stderr: "" });
    expect(JSON.parse(stdout)).toMatchObject({ level: 60, event: "crashed", err: { message: "refused" } });
    expect(stdout).not.toContain("a secret");
  }
});
