import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { openApiDocument, type Tables } from "./openapi.ts";
import type { PublicAction } from "./serve.ts";

const page = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Tephra</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="swagger-ui-bundle.js"></script><script src="start.js"></script></body>
</html>
`;

/** No external validator is called, and example requests are sent only to this service. */
const start = `SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, docExpansion: "none", validatorUrl: null,
});
`;

/** Nothing is loaded from other sites: the page works offline. Swagger UI needs inline styles and images. */
const contentSecurityPolicy =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const text = (body: string, contentType: string): PublicAction => ({
  handle: async () => ({ status: 200, body, contentType, contentSecurityPolicy }),
});

const require = createRequire(import.meta.url);

/** A file shipped with Swagger UI. */
const asset = (path: string, contentType: string): PublicAction => ({
  handle: async () => ({ status: 200, body: await readFile(path, "utf8"), contentType }),
});

/** Documents the API for programs and people. `tables` is called on the first request for the document: the tables contain these routes. */
export function documentation(tables: () => Tables) {
  let document: unknown;
  const describe: PublicAction = {
    handle: async () => {
      document ??= openApiDocument(tables());
      return { status: 200, body: document };
    },
  };
  return {
    document: describe,
    page: text(page, "text/html; charset=utf-8"),
    start: text(start, "text/javascript; charset=utf-8"),
    script: asset(require.resolve("swagger-ui-dist/swagger-ui-bundle.js"), "text/javascript; charset=utf-8"),
    style: asset(require.resolve("swagger-ui-dist/swagger-ui.css"), "text/css; charset=utf-8"),
  };
}
