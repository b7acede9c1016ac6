import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import optimizeLocales from "@react-aria/optimize-locales-plugin";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const folder = join(import.meta.dirname, "dist");

/** Writes `.br` and `.gz` beside each file of text, which the API sends as they are. */
const precompress: Plugin = {
  name: "precompress",
  closeBundle() {
    for (const name of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
      if (!/\.(js|css|html|svg)$/.test(name)) continue;
      const content = readFileSync(join(folder, name));
      const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY };
      writeFileSync(join(folder, `${name}.br`), brotliCompressSync(content, { params }));
      writeFileSync(join(folder, `${name}.gz`), gzipSync(content, { level: 9 }));
    }
  },
};

/**
 * Names the font of all text in the page itself, so that it comes beside the scripts: otherwise it is asked for only once they have put text
 * on the page, which is seen in another font until then, and a Chromium that has just started does not even ask for it.
 */
const preloadFont: Plugin = {
  name: "preload-font",
  transformIndexHtml: {
    order: "post",
    handler(_html, { bundle = {} }) {
      const font = Object.keys(bundle).find((name) => /ibm-plex-sans-latin-wght-normal.*\.woff2$/.test(name));
      if (font === undefined) throw new Error("the font of all text is not in the bundle");
      const attrs = { rel: "preload", as: "font", type: "font/woff2", crossorigin: true, href: `/console/${font}` };
      return [{ tag: "link", attrs, injectTo: "head-prepend" }];
    },
  },
};

export default defineConfig({
  base: "/console/",
  // Texts are English: those of the component library, too.
  plugins: [{ ...optimizeLocales.vite({ locales: ["en-US"] }), enforce: "pre" }, react(), preloadFont, precompress],
  build: {
    outDir: "dist",
    target: "es2023",
    // The Content-Security-Policy allows neither data: URLs nor scripts in a page.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
});
