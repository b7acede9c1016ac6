import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { root } from "../../../scripts/bootstrap.mjs";
import { unpackPrometheus } from "../../../scripts/prometheus-package.ts";
import { freePort, type Program, spawnProgram } from "../../../scripts/spawn-program.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { waitFor } from "../../kit/wait-for.ts";

interface Rule {
  alert: string;
  expr: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

interface Panel {
  id: number;
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string }[];
}

const folder = join(root, "deploy/prometheus");
const rulesFile = readFileSync(join(folder, "alerts.yaml"), "utf8");
const rules: Rule[] = (parse(rulesFile) as { groups: { rules: Rule[] }[] }).groups.flatMap((group) => group.rules);
const dashboards = readdirSync(join(root, "deploy/grafana")).map((name) => ({
  name,
  ...(JSON.parse(readFileSync(join(root, "deploy/grafana", name), "utf8")) as { uid: string; panels: Panel[] }),
}));
/** Of every panel, with the variables of the dashboard filled in. */
const queries = dashboards.flatMap(({ name, panels }) =>
  panels.flatMap(({ title, targets = [] }) =>
    targets.map(({ expr }) => ({ where: `${name}: ${title}`, expr: expr.replaceAll("$job", "tephra") })),
  ),
);

let tools: Awaited<ReturnType<typeof unpackPrometheus>>;
let dir = "";
beforeAll(async () => {
  tools = await unpackPrometheus((line) => process.stdout.write(`${line}\n`));
  dir = mkdtempSync(join(tmpdir(), "tephra-prometheus-"));
  cpSync(folder, dir, { recursive: true });
});
afterAll(() => rmSync(dir, { recursive: true }));

/** What `promtool` writes. @throws with it when it is not satisfied */
const promtool = (args: readonly string[], input = ""): string =>
  execFileSync(tools.promtool, [...args], { cwd: dir, encoding: "utf8", input, stdio: ["pipe", "pipe", "pipe"] });

/** A series of one sample a minute, in promtool's notation. */
type Series = Record<string, string>;
const api = 'job="tephra",instance="a:8776"';

/** For every alert: series that make it fire by `firesAt`, not yet at `quietAt`, and no longer at `clearsAt` (minutes). */
const cases: Record<string, { series: Series; quietAt: number; firesAt: number; clearsAt: number }> = {
  TephraApiDown: { series: { [`up{${api}}`]: "1x5 0x9 1x20" }, quietAt: 6, firesAt: 9, clearsAt: 16 },
  TephraNoWorkers: { series: { [`tephra_workers{${api}}`]: "2x5 0x9 1x20" }, quietAt: 6, firesAt: 9, clearsAt: 16 },
  TephraQueueOld: {
    series: { [`tephra_queue_age_seconds{${api}}`]: "0+60x50 0x20" },
    ...{ quietAt: 34, firesAt: 40, clearsAt: 52 },
  },
  TephraBackupTakesLong: {
    series: { [`tephra_oldest_creating_backup_seconds{${api}}`]: "86000+60x30 0x20" },
    ...{ quietAt: 8, firesAt: 14, clearsAt: 32 },
  },
  TephraNoRecentBackup: {
    series: { [`tephra_last_success_age_seconds{${api}}`]: "93000+60x30 0x20" },
    ...{ quietAt: 11, firesAt: 20, clearsAt: 32 },
  },
  TephraVolumesLate: {
    series: { [`tephra_volumes{${api},state="late"}`]: "0x5 3x70 0x20" },
    ...{ quietAt: 60, firesAt: 70, clearsAt: 78 },
  },
  TephraVolumesNeverBackedUp: {
    series: { [`tephra_volumes{${api},state="never"}`]: "0x5 3x70 0x20" },
    ...{ quietAt: 60, firesAt: 70, clearsAt: 78 },
  },
  TephraPolicyRunsFailed: {
    series: {
      [`tephra_policy_runs_total{${api},outcome="missed"}`]: "0x5 1x100",
      [`tephra_policy_runs_total{${api},outcome="succeeded"}`]: "0+1x120",
    },
    ...{ quietAt: 4, firesAt: 8, clearsAt: 70 },
  },
  TephraPolicyOverdue: {
    series: { [`tephra_policy_next_run_timestamp{${api}}`]: "600x40 90000x20" },
    ...{ quietAt: 25, firesAt: 32, clearsAt: 42 },
  },
  TephraReconcilerFails: {
    // What Prometheus finds at its first scrape is not of this hour.
    series: { [`tephra_reconciler_failures_total{${api},step="schedules"}`]: "3x65 4x100" },
    ...{ quietAt: 64, firesAt: 67, clearsAt: 130 },
  },
  TephraQuotaRepaired: {
    series: { [`tephra_quota_repairs_total{${api}}`]: "0x5 1x1500" },
    ...{ quietAt: 4, firesAt: 8, clearsAt: 1450 },
  },
  TephraDatabaseClockSet: {
    series: { [`tephra_database_clock_steps_total{${api}}`]: "0x5 1x100" },
    ...{ quietAt: 4, firesAt: 8, clearsAt: 70 },
  },
  TephraNotificationsDead: {
    series: { [`tephra_notifications_dead{${api}}`]: "0x5 2x10 0x20" },
    ...{ quietAt: 9, firesAt: 14, clearsAt: 18 },
  },
  TephraAnswersFail: {
    series: {
      [`tephra_http_requests_total{${api},status="2xx"}`]: "0+60x100",
      [`tephra_http_requests_total{${api},status="5xx"}`]: "0x10 6+6x30 186x60",
    },
    ...{ quietAt: 15, firesAt: 35, clearsAt: 60 },
  },
};

/** Alerts of the table that the console shows, each with its code, and for how many minutes it must hold. */
const ofTable: [alert: string, code: string, minutes: number][] = [
  ["TephraRepositoryDown", "repository_down", 2],
  ["TephraOperationStuck", "operation_stuck", 2],
  ["TephraDamageFound", "damage_found", 1],
  ["TephraWorkerSilent", "worker_silent", 5],
  ["TephraOperationFailed", "operation_failed", 1],
  ["TephraQueueDrift", "queue_drift", 5],
  ["TephraDiskLow", "disk_low", 10],
  ["TephraQuotaNear", "quota_near", 10],
  ["TephraKeyMissing", "key_missing", 2],
  ["TephraVersionsMixed", "versions_mixed", 60],
];
for (const [alert, code, minutes] of ofTable) {
  cases[alert] = {
    series: { [`tephra_alerts{${api},code="${code}"}`]: `0x5 1x${minutes + 5} 0x20` },
    ...{ quietAt: 5, firesAt: minutes + 8, clearsAt: minutes + 15 },
  };
}
/** Those of the table that a rule finds by figures of its own. */
const byFigures: Record<string, string> = {
  no_workers: "TephraNoWorkers",
  volumes_never: "TephraVolumesNeverBackedUp",
  volumes_late: "TephraVolumesLate",
  schedule_missed: "TephraPolicyRunsFailed",
  queue_old: "TephraQueueOld",
  notifications_dead: "TephraNotificationsDead",
};

describe("deploy/prometheus", () => {
  test("its files are accepted by promtool, and every alert says how grave it is, what has happened and what to do", () => {
    promtool(["check", "config", "prometheus.yaml"]);
    expect(promtool(["check", "rules", "alerts.yaml"])).toContain(`${rules.length} rules found`);
    for (const { alert, labels, annotations } of rules) {
      expect(["critical", "warning"], alert).toContain(labels["severity"]);
      expect(Object.keys(annotations), alert).toEqual(["summary", "description"]);
    }
  });

  test("there is a case for every alert, by which it fires and clears", () => {
    expect(Object.keys(cases).sort()).toEqual(rules.map(({ alert }) => alert).sort());
    const tests = Object.entries(cases).map(([alert, { series, quietAt, firesAt, clearsAt }]) => {
      const at = (minutes: number, firing: boolean): object => ({
        expr: `sum by (job) (ALERTS{alertname="${alert}",alertstate="firing"})`,
        eval_time: `${minutes}m`,
        exp_samples: firing ? [{ labels: '{job="tephra"}', value: 1 }] : [],
      });
      return {
        name: alert,
        interval: "1m",
        input_series: Object.entries(series).map(([name, values]) => ({ series: name, values })),
        promql_expr_test: [at(quietAt, false), at(firesAt, true), at(clearsAt, false)],
      };
    });
    writeFileSync(
      join(dir, "tests.yaml"),
      stringify({ rule_files: ["alerts.yaml"], evaluation_interval: "1m", tests }),
    );
    expect(promtool(["test", "rules", "tests.yaml"])).toContain("SUCCESS");
  });
});

/** The labels by metric that a text of Prometheus's format has. */
function labelsIn(text: string): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const [, name = "", labels = ""] of text.matchAll(/^(tephra_\w+)(?:\{(.*)\})? \S+$/gm)) {
    const known = found.get(name) ?? new Set();
    for (const [, label = ""] of labels.matchAll(/(\w+)="/g)) known.add(label);
    found.set(name, known);
  }
  return found;
}

/** The metrics of an expression, each with the labels that stand at it, and the labels that it is summed up by. */
function namesIn(expr: string): { metrics: { name: string; labels: string[] }[]; by: string[] } {
  const labels = (text: string): string[] =>
    [...text.matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)].map(([, label = ""]) => label);
  const metrics = [...expr.matchAll(/\b([a-z_]+_[a-z_]+|up)\b(?!\s*\()(?:\{([^}]*)\})?/g)];
  const by = [...expr.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list = ""]) => list.split(/,\s*/));
  return { metrics: metrics.map(([, name = "", matchers = ""]) => ({ name, labels: labels(matchers) })), by };
}

describe("alerts and dashboards beside a service that runs", () => {
  let instance: Instance;
  let text = "";
  beforeAll(async () => {
    instance = await startInstance();
    // What a service that has been well all the time does not have: a step that failed.
    await instance.sql("INSERT INTO counters (name, label, value) VALUES ('reconciler_failures', 'schedules', 1)");
    expect((await instance.request("GET", "/ops/operations")).status).toBe(200);
    text = (await instance.request("GET", "/metrics")).text;
  });
  afterAll(() => instance?.[Symbol.asyncDispose]());

  test("what the service tells is as Prometheus wants it: names, types and help", () => {
    expect(promtool(["check", "metrics"], text)).toBe("");
  });

  test("rules and panels name only metrics and labels that it has", () => {
    const known = labelsIn(text);
    known.set("up", new Set());
    const ours = new Set(["job", "instance"]);
    const named = [...rules.map(({ alert, expr }) => ({ where: alert, expr })), ...queries];
    for (const { where, expr } of named) {
      const { metrics, by } = namesIn(expr);
      expect(metrics.length, where).toBeGreaterThan(0);
      for (const { name, labels } of metrics) {
        const has = known.get(name);
        expect(has, `${where}: ${name}`).toBeDefined();
        for (const label of [...labels, ...by].filter((each) => !ours.has(each))) {
          expect([...(has ?? [])], `${where}: ${name}`).toContain(label);
        }
      }
    }
    // And every metric is looked at by something.
    const seen = new Set(named.flatMap(({ expr }) => namesIn(expr).metrics.map(({ name }) => name)));
    expect([...known.keys()].filter((name) => !seen.has(name))).toEqual([]);
  });

  test("every alert of the table has a rule", () => {
    const codes = [...text.matchAll(/^tephra_alerts\{code="(\w+)"\}/gm)].map(([, code]) => code);
    expect(codes.length).toBeGreaterThan(10);
    expect(codes.sort()).toEqual([...ofTable.map(([, code]) => code), ...Object.keys(byFigures)].sort());
    for (const [alert, code] of ofTable) {
      expect(rules.find((rule) => rule.alert === alert)?.expr).toContain(`code="${code}"`);
    }
    for (const alert of Object.values(byFigures)) expect(rules.map((rule) => rule.alert)).toContain(alert);
  });

  test("Prometheus scrapes it, evaluates every rule, and has data for every panel", async () => {
    await using prometheus = await startPrometheus(instance);
    const ask = prometheus.ask<{ result: unknown[] }>;
    await waitFor(async () => (await ask("query", 'count_over_time(up{job="tephra"}[1m]) > 2')).result.length > 0, {
      what: "three scrapes",
    });
    for (const { where, expr } of queries) {
      const { result } = await ask("query", expr);
      expect(result.length, `${where}: ${expr}`).toBeGreaterThan(0);
    }
    const evaluated = await waitFor(
      async () => {
        const { groups } = await prometheus.ask<{ groups: { rules: Record<string, string>[] }[] }>("rules");
        const all = groups.flatMap((group) => group.rules);
        return all.every(({ health }) => health !== "unknown") && all;
      },
      { what: "every rule was evaluated" },
    );
    expect(evaluated.map(({ name, health, lastError }) => [name, health, lastError])).toEqual(
      rules.map(({ alert }) => [alert, "ok", undefined]),
    );
  });
});

describe("deploy/grafana", () => {
  test.each(dashboards)(
    "$name: every panel has a place and an id of its own, and queries through the variables",
    (board) => {
      const { panels, uid } = board;
      expect(uid).toMatch(/^tephra/);
      expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
      const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
        Array.from({ length: w * h }, (_, at) => `${x + (at % w)} ${y + Math.floor(at / w)}`),
      );
      expect(new Set(cells).size).toBe(cells.length);
      for (const { type, title, targets = [] } of panels) {
        expect(targets.length > 0, title).toBe(type !== "row");
        for (const { expr } of targets) expect(expr, title).toContain('{job="$job"');
      }
    },
  );
});

/** A Prometheus with the files of deploy/prometheus, which scrapes the API of an instance four times a second. */
async function startPrometheus(
  instance: Instance,
): Promise<AsyncDisposable & { program: Program; ask: <T>(what: string, query?: string) => Promise<T> }> {
  const data = join(dir, "data");
  mkdirSync(data);
  const config = parse(readFileSync(join(folder, "prometheus.yaml"), "utf8")) as {
    global?: object;
    scrape_configs: { scrape_interval: string; static_configs: { targets: string[] }[] }[];
  };
  config.global = { evaluation_interval: "1s" };
  for (const job of config.scrape_configs) {
    job.scrape_interval = "250ms";
    job.static_configs = [{ targets: [new URL(instance.url).host] }];
  }
  writeFileSync(join(dir, "running.yaml"), stringify(config));
  const port = await freePort();
  const listen = `--web.listen-address=127.0.0.1:${port}`;
  const files = ["--config.file=running.yaml", `--storage.tsdb.path=${data}`];
  const options = { name: "prometheus", command: tools.server, args: [...files, listen], env: {}, cwd: dir };
  const program = await spawnProgram(options);
  const url = `http://127.0.0.1:${port}`;
  await waitFor(async () => (await fetch(`${url}/-/ready`).catch(() => null))?.ok, { what: "Prometheus is ready" });
  return {
    program,
    ask: async <T>(what: string, query?: string) => {
      const search = query === undefined ? "" : `?${new URLSearchParams({ query })}`;
      const answer = (await (await fetch(`${url}/api/v1/${what}${search}`)).json()) as { status: string; data: T };
      expect(answer.status, query).toBe("success");
      return answer.data;
    },
    [Symbol.asyncDispose]: async () => void (await program.stop()),
  };
}
