import { randomUUID } from "node:crypto";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { startApiOnly } from "../dialects/api-only.ts";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import type { Instance } from "../kit/instance.ts";

const project = "00000000000000000000000000000001";
const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;

beforeAll(async () => {
  // Nothing that waits here is given up.
  const tasks = { reconcile_ms: 3_600_000, unplaced_timeout_ms: 3_600_000, dispatch_timeout_ms: 3_600_000 };
  instance = stack.use(await startApiOnly({ config: { tasks, dispatcher: { project_cap: 3 } } }));
  browser = stack.use(await startBrowser(instance.url));
});
afterEach(() => browser.closePages());
afterAll(() => stack.disposeAsync());

async function open(path: string): Promise<Page> {
  const page = await browser.open();
  await page.goto(`${instance.url}/console${path}`);
  return page;
}

const batch = 5_000;

/** Backups `NAME 1` to `NAME COUNT` of one volume, each a minute after the one before. */
async function addBackups(name: string, count: number): Promise<string[]> {
  const volume = randomUUID();
  const ids: string[] = [];
  for (let from = 1; from <= count; from += batch) {
    const rows = await instance.sql(
      `INSERT INTO backups (id, project_id, user_id, volume_id, name, status, size_gib, repository, data_timestamp, created_at, volume_bytes,
         stored_bytes, verified_at)
       SELECT gen_random_uuid(), $1, 'u', $2, $3 || ' ' || n, CASE WHEN n % 100 = 0 THEN 'error' ELSE 'available' END, 1, 'main',
         '2026-01-01T00:00:00Z'::timestamptz + n * interval '1 minute', '2026-01-01T00:00:00Z'::timestamptz + n * interval '1 minute', 1000, n,
         CASE WHEN n % 4 = 0 THEN now() - interval '10 days' END
       FROM generate_series($4::int, $5::int) n RETURNING id`,
      [project, volume, name, from, Math.min(count, from + batch - 1)],
    );
    ids.push(...rows.map(({ id }) => id));
  }
  return ids;
}

it("shows ten thousand tasks that wait: how many of whom, and the place of each", async () => {
  await instance.sql(
    `INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at)
     SELECT gen_random_uuid(), 'backup-create', 'queued', 'p' || n % 3, 'u', 'r', now() - (20000 - n) * interval '1 second'
     FROM generate_series(1, 10000) n`,
  );
  await instance.sql(
    `INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, needs)
     SELECT gen_random_uuid(), id, 'plan-backup', 0, 'ready', 4, project_id, created_at, '{repository:main}' FROM operations
     WHERE kind = 'backup-create' AND state = 'queued'`,
  );
  const page = await open("/workers");
  await page
    .getByText(/10,000/)
    .first()
    .waitFor();
  const projects = page.getByRole("table", { name: /project/i });
  await projects.getByRole("row", { name: /p1.*3,334/ }).waitFor();
  const operations = await open("/operations?state=queued");
  const rows = operations.locator("tbody tr");
  await rows.first().getByText("over 1,000 ahead").waitFor();
  await rows.nth(99).getByText("over 1,000 ahead").waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("draws a chain of forty with a branch, folded, and keys go along it", async () => {
  const ids = await addBackups("link", 42);
  for (const [at, id] of ids.entries()) {
    // The last two branch off from the twentieth.
    const parent = at === 0 ? null : at === 40 ? ids[19] : ids[at - 1];
    await instance.sql("UPDATE backups SET parent_id = $2, status = 'available', verified_at = NULL WHERE id = $1", [
      id,
      parent,
    ]);
  }
  const page = await open(`/backups/${ids[39]}`);
  const chain = page.getByRole("region", { name: "Chain" });
  await chain.getByText(/^A restore reads 40 members/).waitFor();
  const links = chain.getByRole("link");
  expect(await links.count()).toBeLessThan(20);
  for (const name of ["link 1", "link 20", "link 40", "link 42"]) {
    await chain.getByRole("link", { name, exact: true }).waitFor();
  }
  const passing = chain
    .locator("li", { has: page.getByRole("link", { name: "link 40", exact: true }) })
    .locator(".is-passing");
  expect(await passing.count()).toBe(1);
  expect(await chain.locator("li[aria-current]").innerText()).toContain("link 40");
  await links.first().focus();
  await page.keyboard.press("ArrowDown");
  await chain.locator("li:nth-child(2) a:focus").waitFor();
  for (const more of [1, 2]) {
    const folds = chain.getByRole("button", { name: /more$/ });
    if (more === 1) expect(await folds.count()).toBeGreaterThan(0);
    if ((await folds.count()) > 0) await folds.first().click();
  }
  await links.nth(41).waitFor();
  expect(await links.count()).toBe(42);
  // What is damaged is seen, and so is all that needs it.
  await instance.sql("UPDATE backups SET damage = 'An object is gone.' WHERE id = $1", [ids[37]]);
  await page.reload();
  await chain.getByText("damaged: An object is gone.").waitFor();
  await chain.getByText("builds on what is damaged").nth(1).waitFor();
  expect(await chain.getByText("builds on what is damaged").count()).toBe(2);
  expect(browser.complaints()).toEqual([]);
});

it("deletes three hundred at once, and names the five that were refused, with the reason", async () => {
  const ids = await addBackups("old", 300);
  const held = ids.filter((_, at) => at % 60 === 7);
  await instance.sql("UPDATE backups SET hold_until = '2126-01-01T00:00:00Z' WHERE id = ANY($1)", [held]);
  const page = await open("/backups?q=old&limit=500");
  await page.getByText("300 match.").waitFor();
  await page.getByRole("button", { name: "Choose all shown" }).click();
  await page.getByRole("button", { name: "Delete 300" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete 300" }).click();
  const outcome = page.getByRole("region", { name: "What became of it" });
  await instance.waitFor(async () => (await outcome.textContent())?.includes("295 of 300 accepted, 5 refused"), {
    what: "all were asked for",
    timeoutMs: 120_000,
  });
  const named = outcome.getByRole("listitem");
  expect(await named.count()).toBe(5);
  for (const text of await named.allTextContents()) expect(text).toMatch(/^old \d+: .*held until 2126/);
  const [{ deleting }] = await instance.sql(
    "SELECT count(*)::int AS deleting FROM backups WHERE id = ANY($1) AND status = 'deleting'",
    [ids],
  );
  expect(deleting).toBe(295);
  expect(browser.complaints()).toEqual([]);
});

it("finds its way among 100,000 backups by filters, orders, pages, and addresses that can be shared", async () => {
  await addBackups("copy", 100_000);
  await instance.sql("ANALYZE backups");
  const page = await open("/backups?q=copy");
  const rows = page.locator("tbody tr");
  const first = rows.first();
  const names = () => page.locator('tbody tr td[data-label="Backup"]').allTextContents();
  const seen = (name: string) => first.getByText(name, { exact: true }).waitFor();
  await seen("copy 100000");
  await page.getByText("100,000 match.").waitFor();
  await page.getByRole("button", { name: /^error ?1,000/ }).click();
  await page.getByText("1,000 match.").waitFor();
  await page.getByRole("button", { name: /^never proven/ }).click();
  await page.getByText("No backup matches.").waitFor();
  await page.goBack();
  await seen("copy 100000");
  await page.getByRole("button", { name: "Next page" }).click();
  // Of those that have failed, every hundredth; whatever the pointer is above.
  await seen("copy 90000");
  await page.getByLabel("Order").selectOption("most stored first");
  await seen("copy 100000");
  await page.getByLabel("Order").selectOption("oldest first");
  await seen("copy 100");
  await first.hover();
  await page.getByRole("button", { name: "Next page" }).press("Enter");
  await seen("copy 10100");
  const here = await names();
  expect(here).toHaveLength(100);
  const shared = await browser.open();
  await shared.goto(page.url());
  await shared.locator("tbody tr").first().getByText("copy 10100", { exact: true }).waitFor();
  expect(await shared.locator('tbody tr td[data-label="Backup"]').allTextContents()).toEqual(here);
  await page.reload();
  await seen("copy 10100");
  expect(await names()).toEqual(here);
  await page.getByLabel("Name, or the start of an id").fill("copy 4200");
  await page.getByRole("button", { name: "Filter", exact: true }).click();
  await seen("copy 4200");
  expect(new URL(page.url()).searchParams.get("q")).toBe("copy 4200");
  expect(browser.complaints()).toEqual([]);
});
