import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Journey, journeyOn, sha256Of } from "../kit/journey.ts";

const MiB = 2 ** 20;
const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
let journey: Journey;

beforeAll(async () => {
  instance = stack.use(await startInstance());
  browser = stack.use(await startBrowser(instance.url));
  journey = journeyOn(instance);
});
afterEach(() => browser.closePages());
afterAll(() => stack.disposeAsync());

it("backs a machine up as one, says how, refuses to restore it while it runs, and then restores it", async () => {
  const file = join(instance.dataDir, "root.raw");
  writeFileSync(file, randomBytes(2 * MiB));
  const sha256 = await sha256Of(file);
  const root = await journey.importVolume(file, "root");
  const made = await instance.request("POST", "/ops/instances", { instance: { name: "pg-1", boot_volume_id: root } });
  expect(made.status, made.text).toBe(201);

  const page = await browser.open();
  await page.goto(`${instance.url}/console/machines`);
  await page.getByLabel("Name, or the start of an id").fill("pg");
  await page.getByRole("button", { name: "Filter", exact: true }).click();
  await page
    .getByRole("row", { name: /never pg-1|pg-1 never/ })
    .getByRole("link", { name: "pg-1" })
    .click();
  await page.getByRole("heading", { level: 1, name: "pg-1" }).waitFor();
  await page.getByText("It was never backed up as a whole.").waitFor();
  await page.getByRole("button", { name: "Back up now" }).click();
  const backup = page.getByRole("table", { name: "Backups of the machine" }).locator("tbody tr");
  await backup.getByText("available", { exact: true }).first().waitFor({ timeout: 60_000 });
  // Nothing could freeze it: a record has no agent.
  await backup.getByText(/^crash/).waitFor();
  const restore = (disabled: boolean) => page.getByRole("button", { name: "Restore all…", disabled });
  await restore(true).waitFor();
  await backup.getByText("the machine is ACTIVE: shut it off first").waitFor();

  writeFileSync(journey.volumeFile(root), randomBytes(2 * MiB));
  await page.getByRole("button", { name: "It is shut off…" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "It is shut off" }).click();
  await restore(false).click();
  const dialog = page.getByRole("dialog");
  const go = (disabled: boolean) => dialog.getByRole("button", { name: "Restore all", disabled });
  await go(true).waitFor();
  await dialog.getByLabel("Type pg-1").fill("pg-2");
  await go(true).waitFor();
  await dialog.getByLabel("Type pg-1").fill("pg-1");
  await go(false).click();
  await page
    .getByRole("table", { name: "Operations" })
    .getByRole("row", { name: /succeeded group-restore/ })
    .waitFor({ timeout: 60_000 });
  expect(await sha256Of(journey.volumeFile(root))).toBe(sha256);
  expect(browser.complaints()).toEqual([]);
});

it("shows the parts of an operation and its tasks, and finds operations and volumes by what is typed", async () => {
  const page = await browser.open();
  await page.goto(`${instance.url}/console/operations`);
  await page.getByLabel("Kind, such as backup-create").fill("volume-import");
  await page.getByRole("button", { name: "Filter", exact: true }).click();
  const rows = page.getByRole("table", { name: "Operations" }).locator("tbody tr");
  await rows.filter({ hasText: "group-restore" }).waitFor({ state: "detached" });
  await rows.first().getByText("root", { exact: true }).waitFor();
  await rows.first().getByRole("link", { name: "volume-import" }).click();
  await page.getByRole("list", { name: "Phases" }).getByText("import-volume").waitFor();
  await page.getByRole("region", { name: "Tasks" }).getByRole("button", { name: "Show" }).click();
  await page
    .getByRole("table", { name: "Tasks" })
    .getByRole("row", { name: /import-volume 0/ })
    .waitFor();

  await page.goto(`${instance.url}/console/operations?stuck=1`);
  await page.getByText("No operation matches.").waitFor();
  await page.goto(`${instance.url}/console/volumes?q=no+such`);
  await page.getByText("No volume matches.").waitFor();
  await page.getByLabel("Name, or the start of an id").fill("ROO");
  await page.getByRole("button", { name: "Filter", exact: true }).click();
  const volume = page.getByRole("table", { name: "Volumes and their protection" }).locator("tbody tr");
  await volume.getByRole("link", { name: "pg-1" }).waitFor();
  await page.getByLabel("Order").selectOption("most stored first");
  await page.waitForURL(/sort=stored/);
  await volume.getByRole("link", { name: "root" }).waitFor();

  await page.goto(`${instance.url}/console/repositories`);
  await page.getByRole("link", { name: "main", exact: true }).click();
  await page.getByRole("heading", { level: 1, name: "main" }).waitFor();
  await page.getByRole("table", { name: "Projects" }).locator("tbody tr").first().waitFor();
  // The worker has looked at the folder: what is free there is known.
  await page
    .locator(".facts > div", { hasText: /^Free/ })
    .getByText(/\d (GiB|MiB|TiB)$/)
    .waitFor();
  expect(browser.complaints()).toEqual([]);
});
