import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { expectNoSidewaysScroll, keepPicture, startBrowser, type TestBrowser } from "../kit/browser.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { journeyOn, project } from "../kit/journey.ts";

/** Names that an attacker would choose. */
const hostile = [
  '<img src="x" onerror="document.title=1">',
  "\u202egpj.exe",
  "w".repeat(255),
  "</script><script>alert(1)</script>",
];
const MiB = 2 ** 20;

const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
let pages: readonly (readonly [name: string, path: string, heading: string])[];

/** Volumes, backups of them, a policy: a little of everything that the pages show. */
async function fill(): Promise<void> {
  const file = join(instance.dataDir, "image.raw");
  writeFileSync(file, randomBytes(2 * MiB));
  const journey = journeyOn(instance);
  const disk = await journey.importVolume(file, "db-7");
  for (const name of hostile) await journey.accepted("POST", `/v3/${project}/volumes`, { volume: { size: 1, name } });
  const backup = await journey.backUp(disk, { name: "nightly" });
  const fail = await journey.importVolume(file, "to fail");
  await instance.sql("UPDATE backups SET fail_reason = $1 WHERE id = $2", [hostile[0], backup]);
  const policy = { name: hostile[0], schedule: { cron: "0 2 * * *" }, retention: { keep_daily: 7, keep_weekly: 4 } };
  const made = await instance.request("POST", "/ops/policies", { policy });
  expect(made.status, made.text).toBe(201);
  const policyId = made.body.policy.id as string;
  const assigned = await instance.request("POST", `/ops/policies/${policyId}/assignments`, {
    assignment: { volume_id: fail },
  });
  expect(assigned.status, assigned.text).toBe(201);
  const operation = await journey.operation(`backup_id=${backup}`);
  await instance.sql("UPDATE operations SET state = 'failed', fail_reason = $1 WHERE id = $2", [
    hostile.join(" "),
    operation.id,
  ]);
  const incremental = await journey.backUp(disk, { name: hostile[0], incremental: true });
  const machine = await instance.request("POST", "/ops/instances", {
    instance: { name: hostile[0], boot_volume_id: fail },
  });
  expect(machine.status, machine.text).toBe(201);
  await instance.sql(
    `INSERT INTO samples (at, bytes_read, bytes_stored, succeeded, failed, cancelled, waiting, running, oldest_seconds, workers, slots, volumes, stored)
     SELECT date_trunc('minute', now()) - (1200 - n) * interval '1 minute', n * 6000000::bigint, n * 1000000::bigint, n / 10, n / 100, 0, n % 7, 3, n % 50, 1, 4,
       CASE WHEN n % 15 = 0 THEN '{"protected": 5, "late": 2, "at risk": 1, "never": 1, "excluded": 0}'::jsonb END,
       CASE WHEN n % 15 = 0 THEN jsonb_build_object('main', n * 1000000::bigint) END
     FROM generate_series(1, 1199) n`,
  );
  pages = [
    ["overview", "/", "Overview"],
    ["machines", "/machines", "Machines"],
    ["machine", `/machines/${machine.body.instance.id}`, hostile[0] ?? ""],
    ["backups", "/backups", "Backups"],
    ["backup", `/backups/${incremental}`, hostile[0] ?? ""],
    ["restore", `/backups/${incremental}/restore`, "Restore"],
    ["repositories", "/repositories", "Repositories"],
    ["repository", "/repositories/main", "main"],
    ["workers", "/workers", "Workers & queue"],
    ["notifications", "/notifications", "Notifications"],
    ["volumes", "/volumes", "Volumes"],
    ["calendar", "/volumes?view=calendar", "Volumes"],
    ["volume", `/volumes/${disk}`, "db-7"],
    ["operations", "/operations", "Operations"],
    ["operation", `/operations/${operation.id}`, "backup-create"],
    ["policies", "/policies", "Policies"],
    ["policy", `/policies/${policyId}`, hostile[0] ?? ""],
    ["audit", "/audit", "Audit"],
    ["projects", "/projects", "Projects"],
    ["about", "/about", "About"],
  ];
}

beforeAll(async () => {
  instance = stack.use(await startInstance({ config: { quotas: { volumes: -1, gigabytes: -1 } } }));
  browser = stack.use(await startBrowser(instance.url));
  await fill();
});
afterAll(() => stack.disposeAsync());

async function show(page: Page, path: string, heading: string): Promise<void> {
  await page.goto(`${instance.url}/console${path}`);
  await page.getByRole("heading", { level: 1, name: heading, exact: true }).waitFor();
  await page.locator("[aria-busy=true]").first().waitFor({ state: "detached" });
}

/** No finding that is serious or critical. `rules`: only those. */
async function expectAccessible(page: Page, what: string, rules: string[] = []): Promise<void> {
  const builder = new AxeBuilder({ page }).options({ resultTypes: ["violations"] });
  const { violations } = await (rules.length > 0 ? builder.withRules(rules) : builder).analyze();
  const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  expect(
    grave.map(({ id, nodes }) => [id, nodes[0]?.html, nodes[0]?.failureSummary]),
    what,
  ).toEqual([]);
}

const [wide, phone] = [
  { width: 1440, height: 900 },
  { width: 390, height: 844 },
];

it("every page is accessible in both themes, fits a phone, runs no name as code, and breaks no policy", async () => {
  const page = await browser.open();
  // A browser that has just started gives up every font whose bytes are not there when it first lays text out.
  await show(page, "/about", "About");
  for (const [name, path, heading] of pages) {
    await page.setViewportSize(wide);
    await page.emulateMedia({ colorScheme: "light" });
    await show(page, path, heading);
    await keepPicture(page, `${name}-light-1440`);
    await expectAccessible(page, `${name}, light`);
    await page.emulateMedia({ colorScheme: "dark" });
    await keepPicture(page, `${name}-dark-1440`);
    // All that a theme changes.
    await expectAccessible(page, `${name}, dark`, ["color-contrast"]);
    await page.setViewportSize(phone);
    await keepPicture(page, `${name}-dark-390`);
    await expectNoSidewaysScroll(page, name);
    await page.emulateMedia({ colorScheme: "light" });
    await keepPicture(page, `${name}-light-390`);
    expect(await page.title(), name).toBe("Tephra");
  }
  expect(browser.complaints()).toEqual([]);
});

it("draws what was done, over a day or longer, and has it as a table", async () => {
  const page = await browser.open();
  await show(page, "/", "Overview");
  const moved = page.getByRole("img", { name: /^Read and stored. Now read .*, at most 97.7 KiB\/s; stored / });
  await moved.waitFor();
  await page.getByRole("img", { name: /^Volumes. Now protected \d+, at most 5; late / }).waitFor();
  await moved.locator("canvas").waitFor();
  await page.getByRole("button", { name: "Read and stored as a table" }).click();
  await page.getByRole("table", { name: "Read and stored" }).getByRole("row").nth(2).waitFor();
  await page.getByRole("link", { name: "90 d" }).click();
  await page.getByRole("heading", { name: "Last 90 d" }).waitFor();
  expect(new URL(page.url()).search).toBe("?range=90d");
  await show(page, "/repositories", "Repositories");
  await page.getByRole("img", { name: /^Stored. Now main / }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("shows what would turn or hide text, spelled out", async () => {
  const page = await browser.open();
  await show(page, "/volumes", "Volumes");
  await page.getByText("\\u202egpj.exe").waitFor();
  await page.getByText('<img src="x" onerror="document.title=1">').first().waitFor();
});

it("can be used by keys alone", async () => {
  const page = await browser.open();
  await show(page, "/about", "About");
  await page.keyboard.press("?");
  const dialog = page.getByRole("dialog");
  await dialog.waitFor();
  await expectAccessible(page, "the keys");
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "detached" });
  await page.keyboard.press("g");
  await page.keyboard.press("v");
  await page.getByRole("heading", { level: 1, name: "Volumes" }).waitFor();
  await page.getByRole("row", { name: /db-7/ }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "db-7" }).waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type(new URL(page.url()).pathname.split("/").at(-1) ?? "");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "db-7" }).waitFor();

  await show(page, "/backups", "Backups");
  const rows = page.getByRole("table", { name: "Backups" }).locator("tbody tr");
  await rows.nth(1).waitFor();
  await rows.first().focus();
  await page.keyboard.press("x");
  await page.getByText("1 chosen", { exact: true }).waitFor();
  await page.keyboard.press("j");
  await page.keyboard.press("Shift+X");
  await page.getByText("2 chosen", { exact: true }).waitFor();
  await page.keyboard.press("f");
  await page.locator("input[name=q]:focus").waitFor();
  await show(page, "/backups?limit=1", "Backups");
  await page.getByRole("button", { name: "Next page", disabled: false }).waitFor();
  await page.keyboard.press("]");
  await page.waitForURL(/marker=/);
  await page.getByRole("button", { name: "First page", disabled: false }).waitFor();
  await page.keyboard.press("[");
  await page.waitForURL((url) => !url.search.includes("marker"));
  await show(page, "/repositories", "Repositories");
  expect(browser.complaints()).toEqual([]);
});

it("finds what a name begins with, one or many, and goes to what is chosen", async () => {
  const page = await browser.open();
  await show(page, "/about", "About");
  await page.keyboard.press("/");
  await page.keyboard.type("night");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "nightly" }).waitFor();
  await page.getByRole("searchbox").fill("<img");
  await page.keyboard.press("Enter");
  const hits = page.getByRole("list", { name: "What was found" });
  await hits.getByRole("link", { name: /^volume/ }).waitFor();
  await expectAccessible(page, "what was found");
  await page.keyboard.press("ArrowDown");
  await hits.locator("li:nth-child(2) a:focus").waitFor();
  await page.keyboard.press("Escape");
  await hits.waitFor({ state: "detached" });
  await page.getByRole("searchbox").fill("no such thing");
  await page.keyboard.press("Enter");
  await page.getByText("Nothing begins with no such thing, or it is not yours.").waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("backs a volume up and excludes it, asked for in words first", async () => {
  const page = await browser.open();
  const [, path] = pages.find(([name]) => name === "volume") ?? [];
  await show(page, path ?? "", "db-7");
  await page.getByRole("button", { name: "Back up now" }).click();
  await page.getByText("A full backup was asked for.").waitFor();
  await page.getByRole("table", { name: "Operations" }).getByText("backup-create").nth(1).waitFor();
  await page.getByRole("button", { name: "Exclude…" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Reason").fill("scratch disk");
  await expectAccessible(page, "the dialog");
  await dialog.getByRole("button", { name: "Exclude" }).click();
  await page.getByText("The volume is excluded.").waitFor();
  await show(page, "/volumes?state=excluded", "Volumes");
  await page.getByRole("row", { name: /db-7/ }).waitFor();
  await page.getByRole("button", { name: "never" }).click();
  await page.getByRole("row", { name: /to fail/ }).waitFor();
  expect(new URL(page.url()).search).toBe("?state=never");
  await page.goBack();
  await page.getByRole("row", { name: /db-7/ }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("snoozes what is known, says so, and tells it again", async () => {
  const page = await browser.open();
  await page.setViewportSize(phone);
  await show(page, "/", "Overview");
  const needs = page.getByRole("list", { name: "What needs you" });
  const failed = needs.getByRole("listitem").filter({ hasText: "failed within 24 hours" });
  await failed.getByRole("button", { name: "Snooze…" }).click();
  const dialog = page.getByRole("dialog");
  const snooze = (disabled: boolean) => dialog.getByRole("button", { name: "Snooze", disabled });
  await snooze(true).waitFor();
  await dialog.getByLabel("For").selectOption("a week");
  await dialog.getByLabel("Reason").fill(hostile[0] ?? "");
  await dialog.getByText(/^tephra alert snooze operation_failed --for 7d --reason /).waitFor();
  await expectAccessible(page, "the dialog");
  await expectNoSidewaysScroll(page, "the dialog");
  await snooze(false).click();
  await page.getByText("The alert is snoozed.").waitFor();
  await failed.waitFor({ state: "detached" });
  await page.getByText("1 snoozed").click();
  const snoozed = page.getByRole("list", { name: "What is snoozed" });
  await snoozed.getByText(hostile[0] ?? "").waitFor();
  await expectNoSidewaysScroll(page, "what is snoozed");
  await expectAccessible(page, "what is snoozed");
  await page.emulateMedia({ colorScheme: "dark" });
  await expectAccessible(page, "what is snoozed, dark", ["color-contrast"]);
  await keepPicture(page, "snoozed-dark-390");
  await snoozed.getByRole("button", { name: "Tell again" }).click();
  await failed.waitFor();
  await snoozed.waitFor({ state: "detached" });
  expect(browser.complaints()).toEqual([]);
});
