import { fileURLToPath } from "node:url";
import { defineConfig } from "prisma/config";

// Prisma's native schema engine reads URLs in its own way: the WebAssembly build of the same engine, over connections as the
// programs make them, does its work, and needs no download.
process.env["PRISMA_SCHEMA_ENGINE_BINARY"] ??= fileURLToPath(new URL("./prisma/schema-engine.mjs", import.meta.url));

export default defineConfig({
  schema: "prisma/schema.prisma",
  migrations: { path: "prisma/migrations" },
  // Generating the client needs no database, and must work where there is none.
  // Past a pooler, where there is such a way.
  datasource: { url: process.env["DATABASE_DIRECT_URL"] || process.env["DATABASE_URL"] || "" },
});
