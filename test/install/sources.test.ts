import { existsSync, globSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { expect, test } from "vitest";
import { root } from "../../scripts/bootstrap.mjs";
import { mutations } from "../reliability/mutations/mutations.ts";

const sources = globSync("{packages,apps}/*/src/**/*.ts", { cwd: root }).filter(
  (path) => !path.includes("/generated/") && !path.endsWith(".test.ts"),
);
/** Sources of the product in which this stands. */
const having = (what: RegExp): string[] => sources.filter((path) => what.test(readFileSync(`${root}/${path}`, "utf8")));

test("the product starts programs without a shell, with arguments that are no text to be parsed", () => {
  const starting = having(/node:child_process/);
  expect(starting).toContain("packages/engine/src/encryption/master-keys.ts");
  for (const path of starting) {
    const text = readFileSync(`${root}/${path}`, "utf8");
    const imported = /import \{([^}]*)\} from "node:child_process"/.exec(text)?.[1]?.split(",") ?? [];
    for (const name of imported) expect(["execFile", "spawn"], path).toContain(name.trim());
    expect(text, path).not.toMatch(/\bshell\s*:/);
  }
});

test("the environment is read in one place, and no code is made of text", () => {
  const readers = having(/process\.env\b/).filter((path) => !path.startsWith("apps/cli/"));
  expect(readers).toEqual(["packages/control/src/config.ts"]);
  expect(having(/\beval\(|new Function\(|\$queryRawUnsafe|\$executeRawUnsafe/)).toEqual([]);
});

test.each(mutations)("the mutation is about what stands there: $name", ({ file, from, suite }) => {
  expect(readFileSync(`${root}/${file}`, "utf8").split(from)).toHaveLength(2);
  expect(existsSync(`${root}/${suite}`)).toBe(true);
});

const writings = globSync(
  [
    "*.md",
    "docs/**/*.md",
    "prisma/schema.prisma",
    "{packages,apps}/*/src/**/*.ts",
    "{test,scripts,bench,demo}/**/*.{ts,mjs}",
  ],
  { cwd: root },
).filter((path) => !path.includes("/generated/") && !path.includes("node_modules/"));

const headingsOf = (page: string): string[] => {
  const text = existsSync(`${root}/docs/${page}.md`) ? readFileSync(`${root}/docs/${page}.md`, "utf8") : "";
  return (text.match(/^##+ .+$/gm) ?? []).map((line) => line.replace(/^#+ /, ""));
};
const numbersOf = (page: string): Set<string> =>
  new Set(headingsOf(page).map((heading) => /^(\d+(?:\.\d+)?)\.? /.exec(heading)?.[1] ?? ""));

/** What is written in a file, with comments that go over several lines in one. */
const textOf = (path: string): string => readFileSync(`${root}/${path}`, "utf8").replace(/\n\s*(?:\*|\/\/\/?) ?/g, " ");

test("every section that is cited by its number is there", () => {
  const pages = { "cinder-api": numbersOf("cinder-api"), format: numbersOf("format"), ovirt: numbersOf("ovirt") };
  const form = /\b(cinder-api|format|ovirt) (\d+(?:\.\d+)?(?:(?:, | to | and )\d+(?:\.\d+)?)*)/g;
  const cited = writings.flatMap((path) =>
    [...textOf(path).matchAll(form)].flatMap(([, page, list = ""]) =>
      list.split(/, | to | and /).map((number) => ({ path, page: page as keyof typeof pages, number })),
    ),
  );
  expect(cited.filter(({ page, number }) => !pages[page].has(number))).toEqual([]);
  expect(new Set(cited.filter(({ page }) => page === "cinder-api").map(({ number }) => number)).size).toBeGreaterThan(
    35,
  );
});

/** A page, a comma and a heading in quotes, or bare at the end of a text; or the heading in quotes before the page. */
const headingForms = [
  /docs\/(?<page>[\w-]+)\.md`?, "(?<heading>[^"]+)"/g,
  /docs\/(?<page>[\w-]+)\.md, (?<heading>[A-Z][\w ]+)(?=\."|, lists)/g,
  /"(?<heading>[^"]+)" in `?docs\/(?<page>[\w-]+)\.md/g,
];

test("every heading and every decision that is cited is there", () => {
  let known = 0;
  const missing = writings.flatMap((path) => {
    const text = textOf(path);
    const headings = headingForms.flatMap((form) => [...text.matchAll(form)]);
    const lost = headings.filter(
      ({ groups = {} }) => !headingsOf(groups["page"] ?? "").includes(groups["heading"] ?? ""),
    );
    const decisions = [...text.matchAll(/\b(?:decisions?[ /]|ADR )(\d{4})\b|\((00\d\d)\)/g)].filter(
      ([, named, number = named]) => globSync(`docs/decisions/${number}-*.md`, { cwd: root }).length !== 1,
    );
    known += headings.length - lost.length;
    return [...lost, ...decisions].map(([whole]) => `${path}: ${whole}`);
  });
  expect(missing).toEqual([]);
  expect(known).toBeGreaterThan(7);
});

test.each(["cinder-api", "format", "ovirt"])("sections of docs/%s.md that it refers to itself are there", (page) => {
  const text = readFileSync(`${root}/docs/${page}.md`, "utf8");
  const cited = [...text.matchAll(/\bsection (\d+(?:\.\d+)?)|\((\d+\.\d+)\)/g)].map(([, a, b]) => a ?? b ?? "");
  const isMicroversion = (number: string): boolean => /^3\.\d\d/.test(number);
  expect(cited.filter((number) => !isMicroversion(number) && !numbersOf(page).has(number))).toEqual([]);
});

test("nothing is cited that is not in the repository", () => {
  const outside = /\b(?:API|format) spec\b/i;
  expect(writings.filter((path) => outside.test(readFileSync(`${root}/${path}`, "utf8")))).toEqual([]);
});

/** Paths as ARCHITECTURE.md shortens them: `control/src/…` without `packages/`, `http/auth.ts` within one package, `contract/` within `test`. */
const placesOf = (path: string): string[] =>
  globSync(
    ["", "packages/", "apps/", "packages/*/src/", "apps/*/src/", "test/"].map((base) => base + path.replace(/\/$/, "")),
    {
      cwd: root,
    },
  );

test("every file that ARCHITECTURE.md names is there, and no other has the same short path", () => {
  const text = readFileSync(`${root}/ARCHITECTURE.md`, "utf8").replace(/```[\s\S]*?```/g, "");
  const named = [...text.matchAll(/`([\w-]+(?:[/.][\w.-]+)*\/?)`/g)].map(([, path = ""]) => path);
  const paths = named.filter((path) => path.includes("/"));
  expect(paths.length).toBeGreaterThan(60);
  const wrong = paths.filter((path) => {
    const found = placesOf(path).length;
    return path.endsWith("/") ? found === 0 : found !== 1;
  });
  expect(wrong).toEqual([]);
  const names = new Set(writings.map((path) => basename(path)));
  expect(named.filter((path) => /^[\w-]+\.(?:ts|mjs)$/.test(path) && !names.has(path))).toEqual([]);
});

/** Where a driver is chosen by its name, and where what a user wrote is taken apart to learn it. */
const choosers = [
  "packages/engine/src/open-repository.ts",
  "packages/engine/src/open-volume-backend.ts",
  "packages/engine/src/open-hypervisor.ts",
  "packages/engine/src/repository/repository-url.ts",
];

test("nothing but the choosers and the drivers themselves depends on a driver's name", () => {
  const names = choosers.flatMap((path) =>
    Array.from(
      readFileSync(`${root}/${path}`, "utf8").matchAll(/case "([\w-]+)":|^ {2}(\w+): \(\{.*=> open/gm),
      ([, chosen, listed]) => (chosen ?? listed) as string,
    ),
  );
  expect(names.sort()).toEqual(["device", "file", "nfs", "posix", "qemu", "qmp", "rbd", "record", "s3", "swift"]);
  const name = `"(?:${names.join("|")})"`;
  const branch = new RegExp(
    [`[!=]=\\s*${name}`, `${name}\\s*[!=]=`, `case ${name}:`, `${name}[^\\]\\n]*\\]\\s*\\.includes\\(`].join("|"),
  );
  const own = new RegExp(`^packages/engine/src/(?:repository|volume|hypervisor)/(?:${names.join("|")})(?:/|\\.ts$)`);
  // There "file" is a kind of what a folder holds.
  const folders = /^packages\/engine\/src\/files\//;
  expect(having(branch).filter((path) => !choosers.includes(path) && !own.test(path) && !folders.test(path))).toEqual(
    [],
  );
  // The others have a table.
  expect(choosers.filter((path) => having(branch).includes(path))).toEqual([choosers[0], choosers[2], choosers[3]]);
});

test("what the end of an operation does to its rows is said in one place", () => {
  const ending = having(/import \{[^}]*\bendOperation\b[^}]*\} from/);
  expect(ending).toEqual(["packages/control/src/rows/endings.ts"]);
});

test("which operations and which workers are live is said in one place", () => {
  const spelled = having(/["'`]queued["'`],\s*["'`]running["'`](?!,\s*["'`]succeeded)/);
  expect(spelled).toEqual(["packages/control/src/db/live.ts"]);
  const judging = having(/heartbeat_at (?:>|<)=? now\(\) - \$\{(?!forgetWorkersAfter)/);
  expect(judging).toEqual(["packages/control/src/db/live.ts"]);
  expect(having(/heartbeatAt: \{ (?:gt|lt)e?:/)).toEqual([]);
});

/** The text from `start`, which is behind an opening bracket, to the one that closes it. */
function bracketed(text: string, start: number): string {
  let depth = 1;
  let end = start;
  while (depth > 0 && end < text.length) {
    if ("({[".includes(text[end] ?? "")) depth += 1;
    if (")}]".includes(text[end] ?? "")) depth -= 1;
    end += 1;
  }
  return text.slice(start, end - 1);
}

/** Whether an object literal sets a status or a state: by name, as a shorthand, or by spreading a constant of the file that does. */
function setsStatus(text: string, data: string, seen: readonly string[] = []): boolean {
  if (/(?:^|[{,(]\s*)(?:status|state)\s*[,:}]/.test(data)) return true;
  const names = [...data.matchAll(/\.\.\.\(?(?:\w+ && )?(\w+)|^\s*(\w+)\s*$/g)].map(
    ([, spread, whole]) => spread ?? whole ?? "",
  );
  return names
    .filter((name) => !seen.includes(name))
    .some((name) =>
      [...text.matchAll(new RegExp(`\\b(?:const|let) ${name}\\b[^=]*= \\{`, "g"))].some(({ 0: found, index }) =>
        setsStatus(text, `{${bracketed(text, index + found.length)}}`, [...seen, name]),
      ),
    );
}

/** The places of a source that write a status, or a row that has one. */
function statusWrites(text: string): string[] {
  const models = "attachment|backup|group|groupSnapshot|imageTransfer|snapshot|transfer|volume|operation|task";
  const tables =
    "attachments|backups|groups|group_snapshots|image_transfers|snapshots|transfers|volumes|operations|tasks";
  const calls = [...text.matchAll(new RegExp(`\\.(?:${models})\\s*\\.(create\\w*|upsert|update\\w*)\\(`, "g"))];
  const statements =
    text.match(new RegExp(`\\bINSERT INTO (?:${tables})\\b|\\bUPDATE (?:${tables})\\b[^\`]*`, "g")) ?? [];
  return [
    ...calls
      .filter(({ 0: call, 1: verb = "", index }) => {
        if (!verb.startsWith("update")) return true;
        const asked = bracketed(text, index + call.length);
        const at = asked.search(/\bdata\b/);
        const data = asked.slice(at).replace(/^data:?\s*/, "");
        if (data.startsWith("{")) return setsStatus(text, `{${bracketed(data, 1)}}`);
        return setsStatus(text, /^\w+/.exec(data)?.[0] ?? (/^[,}]/.test(data) ? "data" : ""));
      })
      .map(([call]) => call),
    ...statements.filter((made) => made.startsWith("INSERT") || /(?:\bSET|,)\s*(?:status|state)\s*=/.test(made)),
  ];
}

test("statuses change where rows are written, in rows/ and queue/, and nowhere else", () => {
  const writing = sources.filter((path) => statusWrites(readFileSync(`${root}/${path}`, "utf8")).length > 0);
  const rooms = /^packages\/control\/src\/(?:rows|queue)\//;
  expect(writing.filter((path) => !rooms.test(path))).toEqual([]);
  expect(writing).toContain("packages/control/src/rows/release.ts");
  expect(writing).toContain("packages/control/src/queue/tasks.ts");
});

test.each([
  `tx.backup.create({ data: row })`,
  `tx.volume.update({ where: { id }, data: { status, updatedAt } })`,
  `const change = { name, status: "error" }; tx.snapshot.updateMany({ where: { id }, data: change })`,
  `const data = { state: "failed" }; tx.operation.updateMany({ where, data });`,
  `const change = { status: "error" }; tx.group.update({ where: { id }, data: { ...change, name } })`,
  "tx.$executeRaw`UPDATE volumes v SET updated_at = now(), status = CASE WHEN 1 = 2 THEN '' END WHERE id = 1`",
  "tx.$executeRaw`INSERT INTO tasks (id) VALUES (1)`",
])("a status that is written as %s is seen", (text) => {
  expect(statusWrites(text)).toHaveLength(1);
});

test.each([
  `tx.volume.updateMany({ where: { id, status: "error" }, data: { metadata, updatedAt } })`,
  `tx.backup.count({ where: { status } })`,
  "tx.$executeRaw`UPDATE volumes SET group_id = NULL WHERE status = 'available' AND state = 1`",
])("no status is written by %s", (text) => {
  expect(statusWrites(text)).toEqual([]);
});
