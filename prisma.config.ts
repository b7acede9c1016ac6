import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig } from "prisma/config";

// Where Prisma's native schema engine could not be downloaded, the WebAssembly build of the same engine does its work.
if (process.env["PRISMA_SCHEMA_ENGINE_BINARY"] === undefined && !nativeEnginePresent()) {
  process.env["PRISMA_SCHEMA_ENGINE_BINARY"] = fileURLToPath(new URL("./prisma/schema-engine.mjs", import.meta.url));
}

function nativeEnginePresent(): boolean {
  const engines = dirname(createRequire(import.meta.url).resolve("@prisma/engines/package.json"));
  return existsSync(engines) && readdirSync(engines).some((name) => name.startsWith("schema-engine-"));
}

export default defineConfig({
  schema: "prisma/schema.prisma",
  migrations: { path: "prisma/migrations" },
  // Generating the client needs no database, and must work where there is none.
  datasource: { url: process.env["DATABASE_URL"] ?? "" },
});
