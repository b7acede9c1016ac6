import { ensureConsole } from "../../scripts/bootstrap.mjs";
import { unpackChromium } from "../../scripts/chromium-package.ts";

/** The console, built from the current sources, and a browser. */
export async function setup(): Promise<void> {
  await ensureConsole();
  await unpackChromium((line) => void process.stderr.write(`${line}\n`));
}
