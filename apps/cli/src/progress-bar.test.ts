import { PassThrough } from "node:stream";
import { expect, test } from "vitest";
import { openProgressBar } from "./progress-bar.ts";

/** What a terminal of this width receives. */
function drawnOn(columns: number, draw: (bar: ReturnType<typeof openProgressBar>) => void): string {
  const stream = new PassThrough({ encoding: "utf8" });
  const terminal = Object.assign(stream, { columns }) as unknown as NodeJS.WriteStream;
  draw(openProgressBar(terminal, "restore"));
  return (stream.read() as string | null) ?? "";
}

test("a bar shows its share, seldom between, and its last state for good", () => {
  const text = drawnOn(80, (bar) => {
    for (let done = 0; done <= 100; done++) bar.draw(done / 100, `${done} MiB`);
    bar.close();
  });
  expect(text.split("\r\x1b[K")).toEqual([
    "",
    `restore ${"░".repeat(24)} 0%  0 MiB`,
    `restore ${"█".repeat(24)} 100%  100 MiB\n`,
  ]);
});

test("a bar stays on one line, and one that was never drawn leaves none", () => {
  const text = drawnOn(20, (bar) => {
    bar.draw(0.5, "of a long text");
    bar.close();
  });
  expect(text.split("\r\x1b[K").map((line) => line.trimEnd().length)).toEqual([0, 19, 19]);
  expect(drawnOn(20, (bar) => bar.close())).toBe("");
});
