import { createHash, randomUUID } from "node:crypto";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { finishBackup, startApiOnly } from "../dialects/api-only.ts";
import { startBrowser, type TestBrowser } from "../kit/browser.ts";
import type { Instance } from "../kit/instance.ts";

const [own, foreign] = ["a".repeat(32), "b".repeat(32)];
const tokens = ["reader", "observer", "member", "admin"].map((role) => ({
  sha256: createHash("sha256").update(role).digest("hex"),
  user_id: `the-${role}`,
  project_id: own,
  roles: [role],
}));

const stack = new AsyncDisposableStack();
let instance: Instance;
let browser: TestBrowser;
/** A volume, a backup of it, and the operation that made it. */
interface Things {
  volume: string;
  backup: string;
  operation: string;
}
let mine: Things;
let theirs: Things;
let policy: string;

const ask = (method: string, path: string, body?: unknown) =>
  instance.request(method, path, body, { "x-auth-token": "admin" });

async function make(project: string, name: string): Promise<Things> {
  const volume = randomUUID();
  await instance.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', $3, 'available', 1, 1073741824, 'files', 'nova')`,
    [volume, project, name],
  );
  const made = await ask("POST", `/v3/${own}/backups`, { backup: { volume_id: volume, name: `${name} monday` } });
  expect(made.status, made.text).toBe(202);
  const backup = made.body.backup.id as string;
  const [{ id: operation }] = await instance.sql("SELECT id FROM operations WHERE backup_id = $1", [backup]);
  await finishBackup(instance, backup);
  await instance.sql("UPDATE backups SET project_id = $1 WHERE id = $2", [project, backup]);
  await instance.sql("UPDATE operations SET project_id = $1 WHERE id = $2", [project, operation]);
  return { volume, backup, operation };
}

beforeAll(async () => {
  instance = stack.use(await startApiOnly({ config: { auth: { mode: "static", tokens } } }));
  browser = stack.use(await startBrowser(instance.url));
  mine = await make(own, "own disk");
  theirs = await make(foreign, "secret disk");
  const made = await ask("POST", "/ops/policies", { policy: { name: "nightly", schedule: { cron: "0 2 * * *" } } });
  expect(made.status, made.text).toBe(201);
  policy = made.body.policy.id;
  const notification = randomUUID();
  await instance.sql(
    "INSERT INTO notifications (id, event_type, host, payload, spread) VALUES ($1, 'backup.create.end', 'here', '{}', true)",
    [notification],
  );
  await instance.sql(
    "INSERT INTO deliveries (id, notification_id, target, state, attempts) VALUES ($1, $2, 'webhook:pager', 'dead', 9)",
    [randomUUID(), notification],
  );
});
afterAll(() => stack.disposeAsync());

async function signIn(role: string): Promise<Page> {
  const page = await browser.open();
  await page.goto(`${instance.url}/console/about`);
  await page.getByLabel("Token").fill(role);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { level: 1, name: "About" }).waitFor();
  return page;
}

/** `heading`: what is there once it is known what the page is about. */
async function show(page: Page, path: string, heading: string): Promise<void> {
  await page.goto(`${instance.url}/console${path}`);
  await page.getByRole("heading", { level: 1, name: heading, exact: true }).waitFor();
  await page.locator("main [aria-busy=true]").first().waitFor({ state: "detached" });
}

const harmless =
  /^(Copy .*|Filter|First page|Next page|Take .*|Queue board|Table|Calendar|Show|Fold|24 h|7 d|90 d|.* as a table)$/;

/** What can be pressed on a page that is no filter and copies nothing. */
async function actionsOn(page: Page, path: string, heading: string): Promise<string[]> {
  await show(page, path, heading);
  const pressed = page.locator("main button:not(.chip-button), main a.button");
  const names = await pressed.evaluateAll((all) =>
    all.map((one) => one.getAttribute("aria-label") ?? one.textContent?.trim() ?? ""),
  );
  return names.filter((name) => !harmless.test(name));
}

const pages = (): readonly (readonly [path: string, heading: string, does: readonly string[]])[] => [
  ["/", "Overview", ["Snooze…"]],
  ["/volumes", "Volumes", []],
  ["/machines", "Machines", []],
  ["/backups", "Backups", []],
  ["/operations", "Operations", []],
  ["/audit", "Audit", []],
  [`/volumes/${mine.volume}`, "own disk", ["Back up now", "Exclude…"]],
  [`/backups/${mine.backup}`, "own disk monday", ["Restore…", "Verify deep", "Delete…"]],
  [`/backups/${mine.backup}/restore`, "Restore", ["Restore"]],
  [`/operations/${mine.operation}`, "backup-create", ["Cancel…"]],
  ["/workers", "Workers & queue", ["Disable…"]],
  ["/repositories", "Repositories", ["Reap…", "Rescan…"]],
  ["/policies", "Policies", []],
  ["/projects", "Projects", []],
  ["/about", "About", []],
  [`/policies/${policy}`, "nightly", ["Run now…"]],
  ["/notifications", "Notifications", ["Retry"]],
];

it.each(["reader", "observer"])("offers a %s nothing that changes anything, on no page", async (role) => {
  const page = await signIn(role);
  for (const [path, heading] of pages()) expect(await actionsOn(page, path, heading), path).toEqual([]);
  expect(browser.complaints()).toEqual([]);
});

it("offers an admin what there is to do", async () => {
  const page = await signIn("admin");
  for (const [path, heading, does] of pages()) {
    expect(await actionsOn(page, path, heading), path).toEqual(expect.arrayContaining([...does]));
  }
  expect(browser.complaints()).toEqual([]);
});

it("sends a delivery that was given up again", async () => {
  const page = await signIn("admin");
  await show(page, "/notifications", "Notifications");
  await page
    .getByRole("row", { name: /webhook:pager/ })
    .getByRole("button", { name: "Retry" })
    .click();
  await page.getByText("It is delivered anew, from its first attempt.").waitFor();
  await page.mouse.move(0, 0);
  await page.getByText("None is dead.").waitFor();
  await page.getByRole("button", { name: "pending" }).click();
  await page.getByRole("row", { name: /webhook:pager/ }).waitFor();
  expect(browser.complaints()).toEqual([]);
});

it("shows a member nothing of another project: not in lists, not by its address, not in the search", async () => {
  const page = await signIn("member");
  const kinds = [
    ["volumes", "Volume", mine.volume, theirs.volume],
    ["backups", "Backup", mine.backup, theirs.backup],
    ["operations", "Operation", mine.operation, theirs.operation],
  ] as const;
  for (const [kind, heading, ownId, otherId] of kinds) {
    await show(page, `/${kind}`, `${heading}s`);
    const rows = page.locator("main tbody tr");
    expect(await rows.evaluateAll((all) => all.map((row) => row.getAttribute("data-id"))), kind).toEqual([ownId]);
    await show(page, `/${kind}/${otherId}`, heading);
    await page.getByText("Not here, or not yours.").first().waitFor();
    expect(await page.getByText("secret").count()).toBe(0);
    await page.getByRole("searchbox").fill(otherId);
    await page.keyboard.press("Enter");
    await page.getByText(`Nothing begins with ${otherId}, or it is not yours.`).waitFor();
  }
  expect(browser.complaints()).toEqual([]);
});
