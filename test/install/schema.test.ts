import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, inject, it } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";
import { withClient } from "../../scripts/postgres.ts";
import { spawnProgram } from "../../scripts/spawn-program.ts";
import { createDatabase } from "../kit/instance.ts";
import { waitFor } from "../kit/wait-for.ts";

it("the migrations make exactly what the schema says", () => {
  const prisma = join(root, "node_modules/prisma/build/index.js");
  const paths = ["--from-migrations", "prisma/migrations", "--to-schema", "prisma/schema.prisma"];
  const env = { ...process.env, DATABASE_URL: inject("servers").adminUrl };
  const result = spawnSync(projectNode(), [prisma, "migrate", "diff", ...paths, "--exit-code"], {
    cwd: root,
    env,
    encoding: "utf8",
  });
  expect(`${result.stdout}${result.stderr}`).toContain("No difference detected");
  expect(result.status).toBe(0);
});

/** A project of Prisma's with these migrations, by name. @returns its configuration file */
function layOutMigrations(migrations: Readonly<Record<string, string>>): string {
  const dir = mkdtempSync(join(inject("servers").dir, "migrations-"));
  for (const [name, script] of Object.entries(migrations)) {
    mkdirSync(join(dir, "migrations", name), { recursive: true });
    writeFileSync(join(dir, "migrations", name, "migration.sql"), script);
  }
  writeFileSync(join(dir, "migrations/migration_lock.toml"), 'provider = "postgresql"\n');
  writeFileSync(join(dir, "schema.prisma"), 'datasource db {\n  provider = "postgresql"\n}\n');
  const config = join(dir, "prisma.config.mjs");
  const settings = { schema: join(dir, "schema.prisma"), migrations: { path: join(dir, "migrations") } };
  writeFileSync(
    config,
    `export default { ...${JSON.stringify(settings)}, datasource: { url: process.env.DATABASE_URL } };\n`,
  );
  return config;
}

it("a migration outside a transaction builds an index of a table that is written meanwhile", async () => {
  await using stack = new AsyncDisposableStack();
  const databaseUrl = await createDatabase(inject("servers"), stack);
  const config = layOutMigrations({
    "1_table": "CREATE TABLE written (n int);",
    "2_index": `-- Outside a transaction.
      DROP INDEX CONCURRENTLY IF EXISTS written_n_idx;
      CREATE INDEX CONCURRENTLY written_n_idx ON written (n);`.replaceAll(/^ +/gm, ""),
  });
  const url = `${databaseUrl}${databaseUrl.includes("?") ? "&" : "?"}schema=apart`;
  const deploy = (): ReturnType<typeof spawnProgram> =>
    spawnProgram({
      name: "migrate",
      command: projectNode(),
      args: [join(root, "node_modules/prisma/build/index.js"), "migrate", "deploy", "--config", config],
      env: {
        ...process.env,
        DATABASE_URL: url,
        PRISMA_SCHEMA_ENGINE_BINARY: join(root, "prisma/schema-engine.mjs"),
      },
      cwd: root,
    });
  await withClient(databaseUrl, async (earlier) => {
    // An index is valid when the last transaction has ended that might miss it: here one that holds what it has seen.
    await earlier.query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasks");
    const program = await deploy();
    stack.defer(async () => void (await program.stop()));
    await withClient(databaseUrl, async (writer) => {
      const building = async (): Promise<boolean> => {
        if (!program.running()) throw new Error(program.tail());
        const sql =
          "SELECT FROM pg_stat_progress_create_index WHERE relid = to_regclass('apart.written') AND phase LIKE 'waiting%'";
        return (await writer.query(sql)).rows.length > 0;
      };
      await waitFor(building, { what: "the index is being built", timeoutMs: 60_000, context: program.tail });
      await writer.query("SET lock_timeout = '2s'");
      await writer.query("INSERT INTO apart.written VALUES (1), (2)");
      await earlier.query("COMMIT");
      expect(await program.exited, program.tail()).toMatchObject({ code: 0 });
      const valid = await writer.query(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'apart.written_n_idx'::regclass",
      );
      expect(valid.rows).toEqual([{ indisvalid: true }]);
    });
  });
});
