import { InvalidError } from "../errors.ts";

export const weekDays = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] as const;
const dayNames: readonly string[] = weekDays;

/** A part of the week, by the clocks of a time zone, and how many bytes a second it allows; null: any number. As stored. */
export interface LimitWindow {
  /** `HH:MM`. */
  from: string;
  /** Where it is before `from`, of the next day. */
  to: string;
  days: (typeof weekDays)[number][];
  timezone: string;
  bytes_per_second: number | null;
}

const dayMinutes = 24 * 60;
const weekMinutes = 7 * dayMinutes;
const minutesOf = (text: string): number => Number(text.slice(0, 2)) * 60 + Number(text.slice(3));

/** Minutes since Monday 00:00 at which a window opens and closes, the latter perhaps in the next week. */
function spansOf({ from, to, days }: LimitWindow): [number, number][] {
  const [start, end] = [minutesOf(from), minutesOf(to)];
  const length = end > start ? end - start : end + dayMinutes - start;
  return [...new Set(days)].map((day) => {
    const opens = weekDays.indexOf(day) * dayMinutes + start;
    return [opens, opens + length];
  });
}

const within = (minute: number, [opens, closes]: [number, number]): boolean =>
  (minute >= opens && minute < closes) || (minute + weekMinutes >= opens && minute + weekMinutes < closes);

/** A refusal in the form of that of a body that does not fit its schema. */
export const refusal = (key: string, problem: string): InvalidError =>
  new InvalidError("request", `Invalid input received: ${key}: ${problem}`);

/** Whether it names a time zone, of the IANA's database. */
export function isTimeZone(name: string): boolean {
  try {
    clockOf(name);
    return !/^[+-]/.test(name);
  } catch {
    return false;
  }
}

const clockOf = (timeZone: string): Intl.DateTimeFormat =>
  new Intl.DateTimeFormat("en-GB", { timeZone, weekday: "short", hour: "2-digit", minute: "2-digit" });

/** The window that is open at a time; undefined when none is. */
export function openWindow(windows: readonly LimitWindow[], at: Date): LimitWindow | undefined {
  return windows.find((window) => {
    const parts = new Map(
      clockOf(window.timezone)
        .formatToParts(at)
        .map(({ type, value }) => [type, value.toLowerCase()]),
    );
    const day = dayNames.indexOf(parts.get("weekday") ?? "");
    const minute = day * dayMinutes + Number(parts.get("hour")) * 60 + Number(parts.get("minute"));
    return spansOf(window).some((span) => within(minute, span));
  });
}

/** @throws InvalidError where a time zone is unknown, or two windows are open at the same time */
export function checkWindows(windows: readonly LimitWindow[]): void {
  const refuse = (index: number, key: string, why: string): never => {
    throw refusal(`windows.${index}${key}`, why);
  };
  const taken: [number, number][] = [];
  for (const [index, window] of windows.entries()) {
    if (!isTimeZone(window.timezone))
      refuse(index, ".timezone", `there is no time zone ${JSON.stringify(window.timezone)}`);
    if (window.timezone !== windows[0]?.timezone) refuse(index, ".timezone", "is not that of the first window");
    if (window.from === window.to) refuse(index, ".to", "is the same as from");
    const spans = spansOf(window);
    const meets = ([opens, closes]: [number, number]): boolean =>
      taken.some((other) => within(opens, other) || within(other[0], [opens, closes]));
    if (spans.some(meets)) refuse(index, "", "overlaps another window");
    taken.push(...spans);
  }
}
