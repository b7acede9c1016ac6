import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const text = readFileSync(join(import.meta.dirname, "tokens.css"), "utf8");
const tokens = new Map(
  [...text.matchAll(/--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)/g)].map(([, name = "", ...pair]) => [name, pair]),
);
const tones = ["ok", "work", "restore", "proof", "warn", "risk", "bad", "gone"];

/** WCAG 2.2: relative luminance. */
function luminance(colour: string): number {
  const [r = 0, g = 0, b = 0] = [1, 3, 5]
    .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a: string, b: string): number {
  const [low = 0, high = 0] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

describe.each(["light", "dark"].map((theme, at) => ({ theme, at })))("tokens, $theme", ({ at }) => {
  const of = (name: string): string => tokens.get(name)?.[at] ?? "missing";

  it("have texts that can be read on every ground", () => {
    for (const ground of ["bg", "layer", "hover"]) {
      for (const name of ["text", "second", "link", ...tones.map((tone) => `${tone}-text`)]) {
        expect(contrast(of(name), of(ground)), `${name} on ${ground}`).toBeGreaterThanOrEqual(4.5);
      }
    }
    for (const tone of tones) {
      expect(contrast(of(`${tone}-text`), of(`${tone}-badge`)), `${tone} on its badge`).toBeGreaterThanOrEqual(4.5);
    }
  });

  it("have shapes that can be told from their ground", () => {
    for (const ground of ["bg", "layer"]) {
      for (const tone of tones) {
        expect(contrast(of(`${tone}-fill`), of(ground)), `${tone} on ${ground}`).toBeGreaterThanOrEqual(3);
      }
    }
  });
});
