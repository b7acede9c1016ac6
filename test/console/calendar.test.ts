import { randomUUID } from "node:crypto";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { startApiOnly } from "../dialects/api-only.ts";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import type { Instance } from "../kit/instance.ts";
import { project } from "../kit/journey.ts";

const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
let volume: string;

interface Made {
  /** UTC. */
  at: string;
  status?: string;
  deletedAt?: string;
}

async function addBackup({ at, status = "available", deletedAt }: Made): Promise<void> {
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, status, size_gib, repository, data_timestamp, created_at, deleted_at, stored_bytes)
     VALUES (gen_random_uuid(), $1, 'u', $2, $3, 1, 'main', $4, $4, $5, 1)`,
    [project, volume, status, at, deletedAt ?? null],
  );
}

/** Clocks go back on 25 October 2026 in Berlin, where the browser is: that day has 25 hours. */
beforeAll(async () => {
  instance = stack.use(await startApiOnly());
  browser = stack.use(await startBrowser(instance.url));
  const [row] = await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone, created_at)
     VALUES (gen_random_uuid(), $1, 'u', 'db-7', 'available', 1, 4096, 'files', 'nova', '2026-10-20T10:00:00Z') RETURNING id`,
    [project],
  );
  volume = row.id;
  // Of 22 October in Berlin, of the 21st in UTC.
  await addBackup({ at: "2026-10-21T22:30:00Z" });
  await addBackup({ at: "2026-10-23T10:00:00Z", status: "deleted", deletedAt: "2026-10-30T00:00:00Z" });
  await addBackup({ at: "2026-10-24T10:00:00Z", status: "error" });
  // The last hour of the long day.
  await addBackup({ at: "2026-10-25T22:59:59Z" });
  const made = await instance.request("POST", "/ops/policies", {
    policy: { name: "nightly", schedule: { cron: "0 2 * * *" }, project_id: project },
  });
  expect(made.status, made.text).toBe(201);
  const assignments = `/ops/policies/${made.body.policy.id}/assignments`;
  const assigned = await instance.request("POST", assignments, { assignment: { volume_id: volume } });
  expect(assigned.status, assigned.text).toBe(201);
  await instance.sql(
    "INSERT INTO policy_runs (id, policy_id, due_at, scheduled, state) VALUES ($1, $2, '2026-10-27T02:00:00Z', true, 'missed')",
    [randomUUID(), made.body.policy.id],
  );
  const excluded = await instance.request("PUT", `/ops/volumes/${volume}/exclusion`, { reason: "moved" });
  expect(excluded.status, excluded.text).toBe(200);
  await instance.sql(
    "UPDATE volume_exclusions SET created_at = '2026-10-29T05:00:00Z', until = '2026-10-30T05:00:00Z'",
  );
});
afterAll(() => stack.disposeAsync());

const expected = [
  "2026-10-19: the volume did not exist",
  "2026-10-20: nothing was due",
  "2026-10-21: nothing was due",
  "2026-10-22: can be restored",
  "2026-10-23: was made, and has been deleted since",
  "2026-10-24: failed, or is damaged",
  "2026-10-25: can be restored",
  "2026-10-26: nothing was due",
  "2026-10-27: was due, and missed",
  "2026-10-28: nothing was due",
  "2026-10-29: excluded",
  "2026-10-30: excluded",
  "2026-10-31: nothing was due",
];

/** A page on the last day of October. */
async function open(path: string): Promise<Page> {
  const page = await browser.open();
  await page.clock.setFixedTime("2026-10-31T12:00:00+01:00");
  await page.goto(`${instance.url}/console${path}`);
  await page.locator(".days").first().waitFor();
  return page;
}
const daysOn = async (page: Page): Promise<(string | null)[]> =>
  page.locator(".days .day").evaluateAll((days) => days.map((day) => day.getAttribute("title")));

it("draws each local day of a volume: restorable, pruned, failed, missed, excluded, also when clocks are set", async () => {
  const page = await open(`/volumes/${volume}`);
  const days = await daysOn(page);
  expect(days).toHaveLength(26 * 7);
  expect(days.slice(-expected.length)).toEqual(expected);
  // Columns begin on Monday, and 4 May was one.
  expect(days[0]?.slice(0, 10)).toBe("2026-05-03");
  expect(await page.evaluate("getComputedStyle(document.querySelector('.day')).gridRowStart")).toBe("7");
  expect(browser.complaints()).toEqual([]);
});

it("opens the backups of a day", async () => {
  const page = await open(`/volumes/${volume}`);
  await page.getByRole("link", { name: "2026-10-25: can be restored" }).click();
  await page.getByRole("heading", { level: 1, name: "Backups" }).waitFor();
  await page.getByText("1 match.").waitFor();
  // The clocks are set on that day: it has 25 hours.
  const { searchParams } = new URL(page.url());
  expect([searchParams.get("from"), searchParams.get("to")]).toEqual([
    "2026-10-24T22:00:00.000Z",
    "2026-10-25T23:00:00.000Z",
  ]);
  await page.goBack();
  await page.getByRole("heading", { level: 1, name: /./ }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("draws the days of all volumes of a list, which its address tells, in UTC where times are", async () => {
  const page = await open("/volumes?view=calendar");
  expect((await daysOn(page)).slice(-expected.length)).toEqual(expected);
  expect(await daysOn(page)).toHaveLength(35);
  await page.keyboard.press("t");
  await page.locator('[title="2026-10-21: can be restored"]').waitFor();
  await page.getByRole("link", { name: "Table" }).click();
  await page.getByRole("columnheader", { name: "Last good" }).waitFor();
  expect(new URL(page.url()).search).toBe("");
  await page.goBack();
  await page.locator('[title="2026-10-21: can be restored"]').waitFor();
  expect(browser.complaints()).toEqual([]);
});
