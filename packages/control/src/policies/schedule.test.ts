import { describe, expect, it } from "vitest";
import { isTimeZone } from "../limits/windows.ts";
import { hasFiveFields, nextTime, nextTimes, shortestGapMs } from "./schedule.ts";

/** The times after `from`, up to and with `to`. */
function timesBetween(cron: string, timezone: string, from: string, to: string): string[] {
  const times: string[] = [];
  for (let at = nextTime({ cron, timezone }, new Date(from)); at && at <= new Date(to); ) {
    times.push(at.toISOString().slice(0, 16));
    at = nextTime({ cron, timezone }, at);
  }
  return times;
}

/** Days on which the clock is set in each zone; the hours that go, and come twice, are 02:00–03:00, 00:00–01:00 or 23:00–24:00, 02:00–02:30 or 01:30–02:00. */
describe("when the clock is set", () => {
  it.each([
    ["Europe/Berlin", "30 2 * * *", "2026-03-28T12:00Z", "2026-03-29T12:00Z", ["2026-03-29T01:00"]],
    ["America/Sao_Paulo", "30 0 * * *", "2018-11-03T12:00Z", "2018-11-04T12:00Z", ["2018-11-04T03:00"]],
    ["Australia/Lord_Howe", "15 2 * * *", "2026-10-03T03:00Z", "2026-10-04T03:00Z", ["2026-10-03T15:30"]],
  ])("a run in the lost hour of %s happens once, when it is over", (timezone, cron, from, to, due) => {
    expect(timesBetween(cron, timezone, from, to)).toEqual(due);
  });

  it.each([
    ["Europe/Berlin", "30 2 * * *", "2026-10-24T12:00Z", "2026-10-25T12:00Z", ["2026-10-25T00:30"]],
    ["America/Sao_Paulo", "30 23 * * *", "2018-02-17T12:00Z", "2018-02-18T12:00Z", ["2018-02-18T01:30"]],
    ["Australia/Lord_Howe", "45 1 * * *", "2026-04-04T03:00Z", "2026-04-05T03:00Z", ["2026-04-04T14:45"]],
  ])("a run in the doubled hour of %s happens once, the first time", (timezone, cron, from, to, due) => {
    expect(timesBetween(cron, timezone, from, to)).toEqual(due);
  });

  it.each(["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe"])(
    "a daily run in %s happens once on each of a thousand days, whatever its time of day",
    (timezone) => {
      const day = new Intl.DateTimeFormat("en-CA", { timeZone: timezone });
      for (let minute = 0; minute < 24 * 60; minute += 90) {
        const cron = `${minute % 60} ${Math.floor(minute / 60)} * * *`;
        // São Paulo set its clocks until 2019.
        const days = nextTimes({ cron, timezone }, new Date("2016-12-31T12:00Z"), 1_000).map((at) => day.format(at));
        expect(new Set(days).size, cron).toBe(1_000);
      }
    },
  );

  it("a run every hour happens in every hour that passes", () => {
    const before = new Date("2026-10-24T20:00Z");
    const times = nextTimes({ cron: "0 * * * *", timezone: "Europe/Berlin" }, before, 12).map((at) => at.getTime());
    expect(times.map((at, index) => at - (times[index - 1] ?? before.getTime()))).toEqual(Array(12).fill(3_600_000));
  });
});

it("tells a time that never comes from one that comes seldom", () => {
  const now = new Date("2026-03-01T00:00Z");
  expect(nextTime({ cron: "0 0 30 2 *", timezone: "UTC" }, now)).toBeNull();
  expect(nextTime({ cron: "0 0 29 2 *", timezone: "UTC" }, now)).toEqual(new Date("2028-02-29T00:00Z"));
});

it("knows expressions of five fields and the names of time zones, and no others", () => {
  expect(["0 2 * * *", "*/15 0-6 1,15 * 1-5", "0 0 L * *"].every(hasFiveFields)).toBe(true);
  const others = ["@daily", "0 0 2 * * *", "0 2 * *", "2026-11-11T11:11:11", " 0 2 * * *", ""];
  expect(others.filter(hasFiveFields)).toEqual([]);
  expect(["UTC", "Europe/Berlin", "Australia/Lord_Howe"].every(isTimeZone)).toBe(true);
  expect(["Mars/Olympus", "+02:00", "", "Europe/Berlin "].filter(isTimeZone)).toEqual([]);
});

it("finds the shortest time between two runs, also where a clock is set forward", () => {
  const daily = { cron: "0 2 * * *", timezone: "Europe/Berlin" };
  expect(shortestGapMs(daily, new Date("2026-01-01T00:00Z"), 10)).toBe(24 * 3_600_000);
  expect(shortestGapMs(daily, new Date("2026-01-01T00:00Z"), 400)).toBe(23 * 3_600_000);
});
