import { expect, test } from "vitest";
import { InvalidError } from "../errors.ts";
import { checkWindows, type LimitWindow, openWindow } from "./windows.ts";

const window = (of: Partial<LimitWindow>): LimitWindow => ({
  from: "08:00",
  to: "18:00",
  days: ["mon", "tue", "wed", "thu", "fri"],
  timezone: "Europe/Berlin",
  bytes_per_second: 1_000_000,
  ...of,
});
const isOpen = (of: LimitWindow, at: string): boolean => openWindow([of], new Date(at)) !== undefined;

test("a window is open by the clocks of its time zone, in summer and in winter", () => {
  expect(isOpen(window({}), "2026-11-30T06:59:59Z")).toBe(false);
  expect(isOpen(window({}), "2026-11-30T07:00:00Z")).toBe(true);
  expect(isOpen(window({}), "2026-11-30T16:59:59Z")).toBe(true);
  expect(isOpen(window({}), "2026-11-30T17:00:00Z")).toBe(false);
  expect(isOpen(window({}), "2026-07-13T06:00:00Z")).toBe(true);
  expect(isOpen(window({}), "2026-07-13T05:59:00Z")).toBe(false);
  expect(isOpen(window({}), "2026-11-29T10:00:00Z")).toBe(false);
});

test("a window that ends before it begins ends on the next day, also where the week ends", () => {
  const night = window({ from: "22:00", to: "06:00", days: ["sun"], timezone: "UTC" });
  expect(isOpen(night, "2026-11-29T21:59:00Z")).toBe(false);
  expect(isOpen(night, "2026-11-29T22:00:00Z")).toBe(true);
  expect(isOpen(night, "2026-11-30T00:00:00Z")).toBe(true);
  expect(isOpen(night, "2026-11-30T05:59:00Z")).toBe(true);
  expect(isOpen(night, "2026-11-30T06:00:00Z")).toBe(false);
});

test.each([
  [[window({}), window({ from: "17:59", to: "19:00" })], "windows.1: overlaps another window"],
  [
    [window({ days: ["mon"], from: "01:00", to: "02:00" }), window({ days: ["sun"], from: "23:00", to: "01:30" })],
    "windows.1: overlaps another window",
  ],
  [[window({ timezone: "Europe/Atlantis" })], 'windows.0.timezone: there is no time zone "Europe/Atlantis"'],
  [[window({}), window({ days: ["sat"], timezone: "UTC" })], "windows.1.timezone: is not that of the first window"],
  [[window({ from: "08:00", to: "08:00" })], "windows.0.to: is the same as from"],
])("windows that do not make sense are refused: %#", (windows, why) => {
  expect(() => checkWindows(windows)).toThrow(InvalidError);
  expect(() => checkWindows(windows)).toThrow(why);
});

test("windows that only touch are fine", () => {
  const day = window({ days: ["mon", "tue"] });
  expect(() => checkWindows([day, { ...day, from: "18:00", to: "08:00", days: ["mon"] }])).not.toThrow();
});
