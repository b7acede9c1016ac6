import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, inject, it } from "vitest";
import { projectNode, root } from "../../scripts/bootstrap.mjs";

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
