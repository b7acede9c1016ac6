import { expect, it } from "vitest";
import { boundsOf } from "./days.ts";

it.each([
  ["Europe/Berlin", "2026-03-27", "2026-03-31", [24, 24, 23, 24, 24]],
  ["America/Santiago", "2026-09-05", "2026-09-07", [24, 23, 24]],
  ["Pacific/Kiritimati", "2026-01-01", "2026-01-02", [24, 24]],
  ["Pacific/Pago_Pago", "2026-12-31", "2026-12-31", [24]],
])("days of %s from %s to %s have so many hours", (timezone, from, to, hours) => {
  const { bounds } = boundsOf({ from, to, timezone }, new Date());
  expect(bounds.slice(1).map((end, day) => (end.getTime() - (bounds[day]?.getTime() ?? 0)) / 3_600_000)).toEqual(hours);
});
