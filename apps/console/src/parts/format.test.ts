import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ageText, bytesText, durationText, leftText, percent, quoted, rateText, shown, timeText } from "./format.ts";

describe("numbers", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1_000, "0.98 KiB"],
    [1_024, "1.00 KiB"],
    [65_712_345_088, "61.2 GiB"],
    [1_073_741_824 * 200, "200 GiB"],
    [1024 ** 4, "1.00 TiB"],
  ])("%d bytes are %s", (bytes, text) => expect(bytesText(bytes)).toBe(text));

  it("have three digits at most, whatever their size", () => {
    fc.assert(
      fc.property(fc.nat({ max: Number.MAX_SAFE_INTEGER }), (bytes) => {
        expect(bytesText(bytes).replace(/\D/g, "").length).toBeLessThanOrEqual(3);
      }),
    );
  });

  it("of rates are a dash when nothing moves", () => expect([rateText(0), rateText(null)]).toEqual(["—", "—"]));

  it.each([
    [0.4, "0 s"],
    [59, "59 s"],
    [370, "6 min 10 s"],
    [3_600, "1 h"],
    [31 * 3_600 + 60, "31 h"],
    [4 * 86_400, "4 d"],
    [4 * 86_400 + 3_600, "4 d 1 h"],
  ])("%d seconds are %s", (seconds, text) => expect(durationText(seconds)).toBe(text));

  it("of what is left are rounded up, and never 0 while something runs", () => {
    expect(leftText(0)).toBe("about 5 s left");
    expect(leftText(61)).toBe("about 2 min left");
    expect(leftText(null)).toBe("");
  });

  it("of percent reach 100 at the end alone", () => {
    expect([percent(100, 100, false), percent(100, 100, true), percent(0, 0, false)]).toEqual([99, 100, 0]);
  });
});

describe("times", () => {
  it("have their offset", () => {
    expect(timeText("2026-11-27T01:00:00.000Z", "utc")).toBe("2026-11-27 01:00:00 +00:00");
    expect(timeText("2026-11-27T01:00:00.000Z", "local")).toMatch(/^2026-11-2[67] \d\d:\d\d:00 [+-]\d\d:\d\d$/);
    expect(timeText("nonsense", "utc")).toBe("—");
  });

  it("are ages for a week, then dates", () => {
    const now = Date.parse("2026-11-27T01:00:00Z");
    expect(ageText("2026-11-27T00:59:49Z", now, "utc")).toBe("11 s ago");
    expect(ageText("2026-11-27T01:05:00Z", now, "utc")).toBe("in 5 min");
    expect(ageText("2025-11-27T01:00:00Z", now, "utc")).toBe("2025-11-27");
  });
});

describe("foreign texts", () => {
  it("show what would turn or hide them", () => {
    expect(shown("a\u202egpj.exe\u0000")).toBe("a\\u202egpj.exe\\u0000");
    expect(shown("Ärger, 漢字, 👍")).toBe("Ärger, 漢字, 👍");
  });

  it("are one word on a command line", () => {
    expect(quoted("db-7")).toBe("db-7");
    expect(quoted("a b; rm -rf 'x'")).toBe("'a b; rm -rf '\\''x'\\'''");
  });
});
