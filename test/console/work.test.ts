import { rename } from "node:fs/promises";
import { join } from "node:path";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import { type FlakyProxy, startFlakyProxy } from "../kit/flaky-proxy.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Journey, journeyOn, randomBytesOf, writeIslands } from "../kit/journey.ts";
import { startTcpProxy, type TcpProxy } from "../kit/tcp-proxy.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

const stack = new AsyncDisposableStack();
let instance: Instance;
let database: TcpProxy;
let proxy: FlakyProxy;
let browser: TestBrowser;
let journey: Journey;
let volume: string;

beforeAll(async () => {
  const config = {
    range_bytes: MiB,
    worker: { slots: 2, heartbeat_ms: 250, lease_ms: 2_000, down_ms: 3_000 },
    tasks: { reconcile_ms: 300 },
  };
  const repository = { object_bytes: 128 * KiB, compression: "none" };
  instance = stack.use(await startInstance({ api: false, config, repository }));
  database = stack.use(await startTcpProxy(new URL(instance.databaseUrl)));
  await instance.startApi({ DATABASE_URL: database.through(instance.databaseUrl) });
  proxy = stack.use(await startFlakyProxy({ port: Number(new URL(instance.url).port) }));
  browser = stack.use(await startBrowser(instance.url, proxy.url));
  journey = journeyOn(instance);
  const file = join(instance.dataDir, "image.raw");
  await writeIslands(file, 8 * MiB, [{ offset: 0, data: randomBytesOf("work", 8 * MiB) }]);
  volume = await journey.importVolume(file, "db-7");
});
afterEach(() => browser.closePages());
afterAll(() => stack.disposeAsync());

async function open(path: string, url = instance.url): Promise<Page> {
  const page = await browser.open();
  await page.goto(`${url}/console${path}`);
  await page.getByRole("status").getByText("Live").waitFor();
  return page;
}

const limit = "/ops/limits/repositories/repository/main";

/** So slow that whoever looks sees it run: 8 MiB take minutes, unless somebody lets it go on. */
async function holdUp(): Promise<void> {
  const reply = await instance.request("PUT", limit, { bytes_per_second: 64 * KiB });
  expect(reply.status, reply.text).toBe(200);
  const [{ at }] = await instance.sql("SELECT now() AS at");
  const deaf = "SELECT id FROM workers WHERE heartbeat_at <= $1";
  await instance.waitFor(async () => (await instance.sql(deaf, [at])).length === 0, { what: "the workers know" });
}
const letGo = async () => expect((await instance.request("DELETE", limit)).status).toBe(204);

/** Starts a backup; its operation. */
async function begin(): Promise<{ backup: string; operation: string }> {
  const backup = await journey.startBackup(volume);
  const { id } = await journey.operation(`backup_id=${backup}`);
  return { backup, operation: id };
}

it("shows how far a backup is as it goes on, and its end, without being loaded again", async () => {
  await holdUp();
  const { operation } = await begin();
  const page = await open("/operations");
  const row = page.locator(`tr[data-id="${operation}"]`);
  const done = async (): Promise<number> =>
    (await row.getByRole("progressbar").count()) === 0
      ? 0
      : Number(await row.getByRole("progressbar").getAttribute("value"));
  const first = await instance.waitFor(done, { what: "something is done", timeoutMs: 60_000 });
  await instance.waitFor(async () => (await done()) > first, { what: "more is done", timeoutMs: 60_000 });
  expect(await done()).toBeLessThan(100);
  const details = await open(`/operations/${operation}`);
  await details.getByRole("img", { name: /^8 ranges: .*running/ }).waitFor();
  const workers = await open("/workers");
  await workers.getByText(/\d run$|\d run ·/).waitFor();
  await workers.getByText(/^Redis agrees/).waitFor();
  await row.getByText(/\/s$/).waitFor();
  await letGo();
  await row.getByText("succeeded").waitFor();
  await details.getByRole("img", { name: "8 ranges: 8 done" }).waitFor();
  expect(await done()).toBe(100);
  expect(browser.complaints()).toEqual([]);
});

it("cancels what runs, after it has said what becomes of it", async () => {
  await holdUp();
  const { backup, operation } = await begin();
  const page = await open(`/operations/${operation}`);
  await page.getByRole("button", { name: "Cancel" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByText(`tephra operation cancel ${operation}`).waitFor();
  await dialog.getByRole("button", { name: "Cancel" }).click();
  await page.getByText("It is cancelled.").waitFor();
  await page.getByRole("heading", { name: "backup-create" }).waitFor();
  await page.locator(".page-facts").getByText("cancelled").waitFor();
  await page.getByRole("button", { name: "Cancel" }).waitFor({ state: "detached" });
  await journey.settled("volumes", volume, "available");
  await journey.settled("backups", backup, "error");
  await letGo();
  expect(browser.complaints()).toEqual([]);
});

it("says that no worker is there, where that is why something waits, and no more once one is", async () => {
  const overview = await open("/");
  const workers = await open("/workers");
  const cards = workers.getByRole("table", { name: "Workers" });
  await cards.getByRole("row", { name: /live.*repository:main/ }).waitFor();
  for (const worker of instance.workers) {
    worker.kill("SIGKILL");
    await worker.exited;
  }
  const needs = overview.getByRole("list", { name: "What needs you" });
  await needs.getByText(/no worker/i).waitFor();
  await cards.getByRole("row", { name: /silent/ }).waitFor();
  const { operation } = await begin();
  const page = await open(`/operations/${operation}`);
  await page.getByText("no_worker", { exact: true }).waitFor();
  await page
    .getByText(/was heard of|is alive|no worker/i)
    .first()
    .waitFor();
  await instance.startWorker();
  await page.locator(".page-facts").getByText("succeeded").waitFor();
  await needs.getByText(/no worker/i).waitFor({ state: "detached" });
  await cards.getByRole("row", { name: /live/ }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("says in the worker's own words why a repository is not reached, until it is", async () => {
  const overview = await open("/");
  const needs = overview.getByRole("list", { name: "What needs you" });
  const workers = await open("/workers");
  const away = `${instance.repositoryDir}-away`;
  await rename(instance.repositoryDir, away);
  const card = workers.getByRole("table", { name: "Workers" }).getByText(/not repository:main: /);
  const words = (await card.textContent())?.replace("not repository:main: ", "") ?? "";
  expect(words).not.toBe("");
  await needs.getByText(words).waitFor();
  await rename(away, instance.repositoryDir);
  await needs.getByText(/Repository main/).waitFor({ state: "detached" });
  await card.waitFor({ state: "detached" });
  expect(browser.complaints()).toEqual([]);
});

it("moves no row under the pointer, and tells how many would", async () => {
  await journey.backUp(volume, { name: "monday" });
  const page = await open("/backups");
  const first = page.locator("tbody tr").first();
  await first.getByText("monday").waitFor();
  await first.hover();
  const id = await journey.backUp(volume, { name: "tuesday" });
  const pill = page.getByRole("button", { name: "1 changed" });
  await pill.waitFor();
  expect(await first.getAttribute("data-id")).not.toBe(id);
  expect(await page.locator(`tr[data-id="${id}"]`).count()).toBe(0);
  await pill.click();
  await first.getByText("tuesday").waitFor();
  await pill.waitFor({ state: "detached" });
  expect(browser.complaints()).toEqual([]);
});

it("resets what is stuck, and deletes by force what is named by typing it", async () => {
  const id = await journey.backUp(volume, { name: "to go" });
  const page = await open(`/backups/${id}`);
  await page.getByRole("button", { name: "Verify deep" }).waitFor();
  expect(await page.getByRole("button", { name: "Reset" }).count()).toBe(0);
  await instance.sql("UPDATE backups SET status = 'error_deleting' WHERE id = $1", [id]);
  await page.getByRole("button", { name: "Reset" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Reset" }).click();
  await page.getByText("The backup was reset.").waitFor();
  await page.locator(".page-facts").getByText("error", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Force delete" }).click();
  const dialog = page.getByRole("dialog");
  const button = (disabled: boolean) => dialog.getByRole("button", { name: "Force delete", disabled });
  await dialog.getByLabel("Type to go").fill("to stay");
  await button(true).waitFor();
  await dialog.getByLabel("Type to go").fill("to go");
  await button(false).click();
  await page.getByText("The backup is being deleted.").waitFor();
  await instance.waitFor(async () => (await instance.request("GET", `/ops/backups/${id}`)).status === 404, {
    what: "it is gone",
  });
  expect(browser.complaints()).toEqual([]);
});

it("does again, once, what has failed", async () => {
  const backup = await journey.backUp(volume, { name: "sunday" });
  const { id } = await journey.operation(`backup_id=${backup}`);
  await instance.sql("UPDATE backups SET status = 'error' WHERE id = $1", [backup]);
  await instance.sql("UPDATE operations SET state = 'failed', fail_reason = 'The disk is gone.' WHERE id = $1", [id]);
  const page = await open(`/operations/${id}`);
  await page.getByText("The disk is gone.").waitFor();
  await page.getByRole("button", { name: "Retry" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Retry" }).click();
  await page.getByRole("link", { name: "Show the operation" }).click();
  await page.locator(".page-facts").getByText("succeeded").waitFor();
  expect(page.url()).not.toContain(id);
  await page.goBack();
  await page.getByRole("button", { name: "Retry", disabled: true }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("says that another version answers, and is loaded again when asked to", async () => {
  const page = await browser.open();
  await page.clock.install();
  await page.goto(`${proxy.url}/console/backups?status=available`);
  await page.getByRole("row", { name: /monday/ }).waitFor();
  const other = (body: string): string => body.replace(/"version":"[^"]+"/, '"version":"99.1.0"');
  proxy.decide = ({ path }) => (path === "/ops/session" ? { rewrite: other } : "pass");
  await page.clock.fastForward(61_000);
  await page.getByText("Version 99.1.0 is running now").waitFor();
  await page.getByRole("row", { name: /monday/ }).waitFor();
  await page.getByRole("button", { name: "Reload" }).click();
  await page.getByText("Version 99.1.0 is running now").waitFor({ state: "detached" });
  await page.getByRole("row", { name: /monday/ }).waitFor();
  expect(new URL(page.url()).search).toBe("?status=available");
  proxy.decide = () => "pass";
  expect(browser.complaints()).toEqual([]);
});

it("says that the database does not answer, offers nothing meanwhile, and goes on afterwards", async () => {
  const page = await browser.open();
  await page.clock.install();
  await page.goto(`${instance.url}/console/volumes/${volume}`);
  await page.getByRole("status").getByText("Live").waitFor();
  const button = (disabled: boolean) => page.getByRole("button", { name: "Back up now", disabled });
  await button(false).waitFor();
  database.trouble({ kind: "cut" });
  await page.clock.fastForward(20_000);
  await page.getByRole("status").getByText("Offline since").waitFor();
  await page.getByText("what is shown is from before").waitFor();
  await page.getByRole("heading", { name: "db-7" }).waitFor();
  await button(true).waitFor();
  database.trouble(null);
  await page.getByRole("status").getByText("Live").waitFor();
  await page.getByText("what is shown is from before").waitFor({ state: "detached" });
  await button(false).waitFor();
  expect(browser.complaints().filter((text) => !text.includes("50"))).toEqual([]);
});
