import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { expect } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { unpackChromium } from "../../scripts/chromium-package.ts";
import { patience } from "./wait-for.ts";

/** A browser, and what went wrong in its pages. */
export interface TestBrowser extends AsyncDisposable {
  /** A page in a profile of its own. Its waits end with an error after a minute, times `patience`. */
  open(options?: BrowserContextOptions): Promise<Page>;
  /** Closes all pages: each reads a stream of events, of which one user has only some. */
  closePages(): Promise<void>;
  /** What pages have complained about since the last call: errors of scripts, of the policy, and requests to other origins. */
  complaints(): string[];
}

/** The browser's settings of fonts: a clean machine has none. */
function fontSettings(dir: string): string {
  const path = join(dir, "fonts.conf");
  const folders = ["/usr/share/fonts", join(root, "node_modules/@fontsource")];
  const xml = folders.map((folder) => `<dir>${folder}</dir>`).join("");
  writeFileSync(path, `<?xml version="1.0"?><fontconfig>${xml}<cachedir>${dir}</cachedir></fontconfig>`);
  return path;
}

// Scripts of pages, as text: these files are compiled without the types of a browser.
const tellViolations = `document.addEventListener("securitypolicyviolation", (event) =>
  console.error("policy: " + event.violatedDirective + " " + event.blockedURI + " " + event.sourceFile + ":" + event.lineNumber));`;
const findWide = `(() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter((each) => each.getBoundingClientRect().right > clientWidth + 1);
  return scrollWidth > clientWidth ? [scrollWidth, ...wide.slice(0, 5).map((each) => each.tagName + "." + each.className)] : [];
})()`;

/** Starts Debian's Chromium without a display. `origins`: the only ones whose pages may be asked. */
export async function startBrowser(...origins: readonly string[]): Promise<TestBrowser> {
  const { command, env } = await unpackChromium((line) => void process.stderr.write(`${line}\n`));
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-browser-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true, maxRetries: 5 }));
  const browser: Browser = await chromium.launch({
    executablePath: command,
    // As root, the browser's own sandbox cannot be used; small machines have little shared memory.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
    env: {
      PATH: process.env["PATH"] ?? "",
      HOME: dir,
      FONTCONFIG_FILE: fontSettings(dir),
      TZ: "Europe/Berlin",
      ...env,
    },
  });
  stack.defer(() => browser.close());
  const complaints: string[] = [];
  const watch = async (context: BrowserContext): Promise<void> => {
    await context.addInitScript(tellViolations);
    context.on("console", (message) => {
      // A refused request is told by the page itself.
      const isRefusal = /^Failed to load resource: the server responded with a status of 4\d\d/.test(message.text());
      if (message.type() === "error" && !isRefusal) complaints.push(message.text());
    });
    context.on("weberror", (error) => complaints.push(String(error.error().stack)));
    context.on("request", (request) => {
      if (!origins.includes(new URL(request.url()).origin)) complaints.push(`asks ${request.url()}`);
    });
    context.on("response", (response) => {
      if (response.status() >= 500) complaints.push(`${response.status()} ${response.url()}`);
    });
  };
  const owned = stack.move();
  return {
    open: async (options = {}) => {
      const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
      context.setDefaultTimeout(60_000 * patience);
      await watch(context);
      return context.newPage();
    },
    closePages: async () => void (await Promise.all(browser.contexts().map((context) => context.close()))),
    complaints: () => complaints.splice(0),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Keeps a picture of the page in `var/screenshots`. */
export async function keepPicture(page: Page, name: string): Promise<void> {
  const folder = join(root, "var/screenshots");
  mkdirSync(folder, { recursive: true });
  await page.evaluate("document.fonts.ready.then(() => true)");
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}

/** Nothing may be wider than the window. */
export async function expectNoSidewaysScroll(page: Page, what: string): Promise<void> {
  expect(await page.evaluate(findWide), `${what} is wider than the window`).toEqual([]);
}
