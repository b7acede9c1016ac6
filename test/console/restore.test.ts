import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Journey, journeyOn, project, sha256Of } from "../kit/journey.ts";

const MiB = 2 ** 20;
const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
let journey: Journey;
let volume: string;
let backup: string;
let sha256: string;

beforeAll(async () => {
  instance = stack.use(await startInstance());
  browser = stack.use(await startBrowser(instance.url));
  journey = journeyOn(instance);
  const file = join(instance.dataDir, "image.raw");
  writeFileSync(file, randomBytes(3 * MiB));
  sha256 = await sha256Of(file);
  volume = await journey.importVolume(file, "db 7");
  const full = await journey.backUp(volume, { name: "monday" });
  backup = await journey.backUp(volume, { name: "tuesday", incremental: true });
  expect(full).not.toBe(backup);
});
afterAll(() => stack.disposeAsync());

describe("a restore", () => {
  it("opens with what is known of it, and makes a new volume with the same bytes", async () => {
    const page = await browser.open();
    await page.goto(`${instance.url}/console/backups/${backup}`);
    await page.getByText("A restore reads 2 members").waitFor();
    await page.getByRole("button", { name: "Verify deep" }).click();
    await page.getByText("A verification was asked for.").waitFor();
    await page.getByRole("link", { name: "Restore…" }).click();
    await page.getByText("None of its 2 members is known to be damaged.").waitFor();
    await page.getByText("Every byte was read and compared").waitFor({ timeout: 60_000 });
    await page.getByRole("status").getByText("Yes", { exact: true }).waitFor();
    await page.getByText("The quota has room for a volume of 1 GiB.").waitFor();
    await page.getByRole("textbox", { name: "Name" }).fill("made of tuesday");
    await page.getByRole("button", { name: "Restore", exact: true }).click();
    await page.getByRole("heading", { level: 1, name: "made of tuesday" }).waitFor();
    const made = new URL(page.url()).pathname.split("/").at(-1) ?? "";
    await journey.settled("volumes", made, "available");
    expect(await sha256Of(journey.volumeFile(made))).toBe(sha256);
    expect(browser.complaints()).toEqual([]);
  });

  it("over a volume wants its name typed, exactly", async () => {
    await journey.settled("backups", backup, "available");
    writeFileSync(journey.volumeFile(volume), randomBytes(3 * MiB));
    const page = await browser.open();
    await page.goto(`${instance.url}/console/backups/${backup}/restore`);
    await page.getByLabel("over a volume").check();
    await page.getByRole("combobox", { name: /^Volume/ }).selectOption(volume);
    const button = (disabled: boolean) => page.getByRole("button", { name: "Restore", exact: true, disabled });
    await button(true).waitFor();
    await page.getByLabel("Type db 7").fill("db 8");
    await button(true).waitFor();
    await page.getByLabel("Type db 7").fill("db 7");
    await button(false).click();
    await page.getByRole("heading", { level: 1, name: "db 7" }).waitFor();
    await journey.settled("volumes", volume, "available");
    expect(await sha256Of(journey.volumeFile(volume))).toBe(sha256);
    expect(browser.complaints()).toEqual([]);
  });
});

it("a target that cannot be written is told, and the button waits for another", async () => {
  await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [volume]);
  const page = await browser.open();
  await page.goto(`${instance.url}/console/backups/${backup}/restore`);
  const button = (disabled: boolean) => page.getByRole("button", { name: "Restore", exact: true, disabled });
  await page.getByText("A new volume is made on files.").waitFor();
  await button(false).waitFor();
  await page.getByLabel("over a volume").check();
  await page.getByRole("combobox", { name: /^Volume/ }).selectOption(volume);
  await page.getByText("Volume to be restored to must be available: it is in-use.").waitFor();
  await page.getByLabel("Type db 7").fill("db 7");
  await button(true).waitFor();
  await page.getByLabel("to a new volume").check();
  await page.getByText("A new volume is made on files.").waitFor();
  await button(false).waitFor();
  await instance.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [volume]);
  expect(browser.complaints()).toEqual([]);
});

it("a damaged member is told before a restore, and makes the volume at risk or never protected", async () => {
  await instance.sql("UPDATE backups SET damage = 'object 00001 has other bytes' WHERE parent_id IS NULL");
  const page = await browser.open();
  await page.goto(`${instance.url}/console/backups/${backup}/restore`);
  await page.getByText("1 of its 2 members is damaged: object 00001 has other bytes").waitFor();
  await page.goto(`${instance.url}/console/`);
  await page
    .getByRole("list", { name: "What needs you" })
    .getByText(/never|damage/i)
    .first()
    .waitFor();
  await instance.sql("UPDATE backups SET damage = NULL");
  expect(browser.complaints()).toEqual([]);
});

it("a host is taken out of work and put back", async () => {
  const page = await browser.open();
  await page.goto(`${instance.url}/console/workers`);
  await page.getByRole("button", { name: "Disable…" }).first().click();
  await page.getByRole("dialog").getByLabel("Reason").fill("new disks");
  await page.getByRole("dialog").getByRole("button", { name: "Disable" }).click();
  const hosts = page.getByRole("table", { name: "Services" });
  await hosts.getByRole("row", { name: /disabled.*new disks/ }).waitFor();
  const services = await instance.request("GET", `/v3/${project}/os-services`);
  expect(services.body.services.some(({ status }: { status: string }) => status === "disabled")).toBe(true);
  await page.getByRole("button", { name: "Enable" }).click();
  await hosts.getByRole("row", { name: /disabled/ }).waitFor({ state: "detached" });
  expect(browser.complaints()).toEqual([]);
});
