import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { startApiOnly } from "../dialects/api-only.ts";
import { startBrowser } from "../kit/browser.ts";

const assets = join(root, "apps/console/dist/assets");
const kB = 1_000;

/** Bytes of files as they are sent: compressed by brotli where they are text. */
const sumOf = (names: readonly string[]): number =>
  names.reduce((sum, name) => sum + statSync(join(assets, /\.(js|css)$/.test(name) ? `${name}.br` : name)).size, 0);

it("loads Overview, and all its pages, within their budgets, and nothing twice", async () => {
  await using instance = await startApiOnly();
  await using browser = await startBrowser(instance.url);
  const page = await browser.open();
  const loaded = new Set<string>();
  page.on("request", (request) => {
    const [, name] = /\/console\/assets\/([^?]+)$/.exec(request.url()) ?? [];
    if (name !== undefined) loaded.add(name);
  });
  await page.goto(`${instance.url}/console/`);
  // The page names its font, so that it comes beside the scripts: once, and before they put text on the page.
  const fonts = `performance.getEntriesByType("resource").filter(({ name }) => name.includes("plex-sans")).map(({ initiatorType }) => initiatorType)`;
  expect(await page.evaluate(fonts)).toEqual(["link"]);
  await page.getByRole("heading", { level: 1, name: "Overview" }).waitFor();
  await page.getByText("within their target").waitFor();
  const ofKind = (names: Iterable<string>, ending: string): string[] =>
    [...names].filter((name) => name.endsWith(ending));
  const all = readdirSync(assets);
  const figures = {
    overview: sumOf(ofKind(loaded, ".js")),
    scripts: sumOf(ofKind(all, ".js")),
    styles: sumOf(ofKind(all, ".css")),
    fonts: sumOf(ofKind(loaded, ".woff2")),
  };
  process.stdout.write(`console: bytes sent, by brotli: ${JSON.stringify(figures)}\n`);
  expect(figures.overview).toBeGreaterThan(50 * kB);
  expect(figures.overview).toBeLessThanOrEqual(190 * kB);
  expect(figures.scripts).toBeLessThanOrEqual(290 * kB);
  expect(figures.styles).toBeLessThanOrEqual(20 * kB);
  expect(figures.fonts).toBeLessThanOrEqual(62 * kB);
  const again: string[] = [];
  page.on("response", (response) => {
    // A file that the browser has kept answers without a request to the service.
    const isFromService = response.url().includes("/console/assets/") && !response.fromServiceWorker();
    if (isFromService && response.request().timing().connectStart >= 0) again.push(response.url());
  });
  await page.reload();
  await page.getByText("within their target").waitFor();
  expect(again).toEqual([]);
});
