import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import { openEventReader } from "../kit/events.ts";
import { type FlakyProxy, startFlakyProxy } from "../kit/flaky-proxy.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Journey, journeyOn } from "../kit/journey.ts";

const MiB = 2 ** 20;
const stack = new AsyncDisposableStack();
let instance: Instance;
let proxy: FlakyProxy;
let browser: TestBrowser;
let journey: Journey;
let volume: string;

beforeAll(async () => {
  instance = stack.use(await startInstance());
  proxy = stack.use(await startFlakyProxy({ port: Number(new URL(instance.url).port) }));
  browser = stack.use(await startBrowser(instance.url, proxy.url));
  journey = journeyOn(instance);
  const file = join(instance.dataDir, "image.raw");
  writeFileSync(file, randomBytes(2 * MiB));
  volume = await journey.importVolume(file, "db-7");
});
afterEach(() => browser.closePages());
afterAll(() => stack.disposeAsync());

const chip = (page: Page) => page.getByRole("status");
const row = (page: Page, name: string, state: string) =>
  page.getByRole("row", { name: new RegExp(`${state}.*${name}`) });
const setStatus = (id: string, status: string) =>
  instance.sql("UPDATE backups SET status = $1 WHERE id = $2", [status, id]);

/** The list of backups, with a clock that can be moved, once its chip says so. */
async function openBackups(says: string, url = instance.url): Promise<Page> {
  const page = await browser.open();
  await page.clock.install();
  await page.goto(`${url}/console/backups`);
  await chip(page).getByText(says).waitFor();
  await page.evaluate("globalThis.isFirstPage = true");
  return page;
}

/** Paths that the page asks for, from now on. */
function requestsOf(page: Page): string[] {
  const paths: string[] = [];
  page.on("request", (request) => void paths.push(new URL(request.url()).pathname));
  return paths;
}

/** Once this is answered, everything that the page had begun to ask for is on record. */
const settle = (page: Page) => page.evaluate("fetch('/livez').then((answer) => answer.text())");

async function expectSamePage(page: Page): Promise<void> {
  expect(await page.evaluate("globalThis.isFirstPage")).toBe(true);
}

it("shows what others do as it happens, asks for that alone, and for nothing while nothing happens", async () => {
  const page = await openBackups("Live");
  await page.getByText("There is no backup yet.").waitFor();
  const asked = requestsOf(page);
  await journey.backUp(volume, { name: "monday" });
  await row(page, "monday", "available").waitFor();
  // Whether it is still the one who signed in is asked once a minute.
  expect(new Set(asked.filter((path) => path !== "/ops/session"))).toEqual(new Set(["/ops/backups"]));
  // The list may have told already what an event on its way tells, too: that is the last time it is asked for.
  const quiet = async (): Promise<boolean> => {
    await settle(page);
    asked.length = 0;
    await page.clock.fastForward(10_000);
    await settle(page);
    return asked.every((path) => path === "/livez");
  };
  await instance.waitFor(quiet, { what: "nothing is asked for in two intervals" });
  await expectSamePage(page);
  expect(browser.complaints()).toEqual([]);
});

it("says that the service is away, keeps what was there, and misses nothing that happens meanwhile", async () => {
  const id = await journey.backUp(volume, { name: "tuesday" });
  const page = await openBackups("Live");
  await row(page, "tuesday", "available").waitFor();
  await instance.killApi();
  await chip(page).getByText("Offline since").waitFor();
  await page.getByRole("alert").getByText("The service cannot be reached.").waitFor();
  await row(page, "tuesday", "available").waitFor();
  await setStatus(id, "error");
  await instance.startApi();
  await chip(page).getByText("Live").waitFor();
  await row(page, "tuesday", "error").waitFor();
  await page.getByRole("alert").waitFor({ state: "detached" });
  await expectSamePage(page);
  const others = browser.complaints().filter((text) => !text.includes("net::ERR_"));
  expect(others).toEqual([]);
});

it("asks for changes where a proxy holds the events up, and reads them once it does not", async () => {
  const id = await journey.backUp(volume, { name: "wednesday" });
  proxy.decide = ({ path }) => (path.startsWith("/ops/events") ? { rewrite: (body) => body } : "pass");
  const page = await openBackups("Every 5 s", proxy.url);
  await row(page, "wednesday", "available").waitFor();
  for (const status of ["error", "available", "error"]) {
    await setStatus(id, status);
    await row(page, "wednesday", status).waitFor();
  }
  expect(proxy.seen.map(({ path }) => path.replace(/\?.*/, ""))).toContain("/ops/changes");
  proxy.decide = () => "pass";
  await page.clock.fastForward(60_000);
  await chip(page).getByText("Live").waitFor();
  await setStatus(id, "available");
  await row(page, "wednesday", "available").waitFor();
  await expectSamePage(page);
  expect(browser.complaints()).toEqual([]);
});

it("loads in the ninth window of the same user, too, which asks for changes", async () => {
  const id = await journey.backUp(volume, { name: "thursday" });
  await using readers = new AsyncDisposableStack();
  for (let at = 0; at < 8; at += 1) {
    // The service may not have heard yet that the windows before are closed.
    const opened = async () => {
      const reader = readers.use(await openEventReader(`${instance.url}/ops/events`));
      return reader.status === 200;
    };
    await instance.waitFor(opened, { what: `stream ${at} is open` });
  }
  const page = await openBackups("Every 5 s");
  await row(page, "thursday", "available").waitFor();
  await setStatus(id, "error");
  await row(page, "thursday", "error").waitFor();
  await expectSamePage(page);
  const others = browser.complaints().filter((text) => !text.includes("503"));
  expect(others).toEqual([]);
});

/** As if its window were hidden, or seen again. */
const show = (page: Page, state: "hidden" | "visible") =>
  page.evaluate(`Object.defineProperty(document, "visibilityState", { configurable: true, value: "${state}" });
    document.dispatchEvent(new Event("visibilitychange"));`);

it("gives the stream up where nobody sees it, and goes on where it was", async () => {
  const id = await journey.backUp(volume, { name: "friday" });
  const page = await openBackups("Live");
  const asked = requestsOf(page);
  const ended = page.waitForEvent("requestfailed", (request) => request.url().includes("/ops/events"));
  await show(page, "hidden");
  await page.clock.fastForward(31_000);
  await ended;
  await settle(page);
  asked.length = 0;
  await setStatus(id, "error");
  await page.clock.fastForward(15_000);
  await settle(page);
  expect(asked).toEqual(["/livez"]);
  const again = page.waitForRequest((request) => request.url().includes("/ops/events"));
  await show(page, "visible");
  expect((await again).headers()["last-event-id"]).toMatch(/^\d+-\d+$/);
  await row(page, "friday", "error").waitFor();
  await expectSamePage(page);
  expect(browser.complaints()).toEqual([]);
});

it("stands still when it is paused, and catches up afterwards", async () => {
  const id = await journey.backUp(volume, { name: "saturday" });
  const page = await openBackups("Live");
  const ended = page.waitForEvent("requestfailed", (request) => request.url().includes("/ops/events"));
  await page.keyboard.press("p");
  await chip(page).getByText("Paused").waitFor();
  await ended;
  const asked = requestsOf(page);
  await setStatus(id, "error");
  await page.clock.fastForward(120_000);
  await settle(page);
  expect(asked.filter((path) => path !== "/ops/session")).toEqual(["/livez"]);
  await row(page, "saturday", "available").waitFor();
  await chip(page).getByRole("button").click();
  await chip(page).getByText("Live").waitFor();
  await row(page, "saturday", "error").waitFor();
  await expectSamePage(page);
  expect(browser.complaints()).toEqual([]);
});
