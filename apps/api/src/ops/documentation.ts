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

/** No validator elsewhere is asked, and no example is sent to anywhere but here. */
const start = `SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, docExpansion: "none", validatorUrl: null,
});
`;

/** Nothing from elsewhere: the page works without a network. Swagger UI sets styles and shows pictures of its own. */
const contentSecurityPolicy =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const text = (body: string, contentType: string): PublicAction => ({
  handle: async () => ({ status: 200, body, contentType, contentSecurityPolicy }),
});

const require = createRequire(import.meta.url);

/** A file that Swagger UI ships. */
const asset = (path: string, contentType: string): PublicAction => ({
  handle: async () => ({ status: 200, body: await readFile(path, "utf8"), contentType }),
});

/** What the API is, for programs and for people. `tables` is asked for when the document first is: it stands in them itself. */
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
