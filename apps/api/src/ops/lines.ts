import type { ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

/**
 * Rows as one line of JSON each, as fast as the reader takes them: no more than a page of them is in memory. Where one cannot be read any
 * more, the connection is cut, so that nobody takes what came for all.
 */
export const linesOf =
  (pages: () => AsyncIterable<readonly unknown[]>) =>
  (res: ServerResponse): void => {
    async function* lines(): AsyncGenerator<string> {
      for await (const rows of pages()) yield rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    }
    res.writeHead(200, { "content-type": "application/x-ndjson", "cache-control": "no-store" });
    pipeline(Readable.from(lines()), res).catch(() => res.destroy());
  };
