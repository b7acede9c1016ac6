export const periods = ["hourly", "daily", "weekly", "monthly", "yearly"] as const;
export type Period = (typeof periods)[number];

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;

/**
 * Names of the periods of a time zone that the moment lies in. Weeks begin on Monday. An hour that a clock shows twice is two hours; a day
 * has 23 to 25 of them.
 *
 * @throws RangeError for an unknown time zone
 */
export function periodsOf(at: Date, timeZone: string): Record<Period, string> {
  const local = localTime(at, timeZone);
  const day = Math.floor(local / dayMs);
  const date = new Date(local);
  return {
    hourly: `${Math.floor(local / hourMs)}/${local - at.getTime()}`,
    daily: String(day),
    // The first day of 1970 was a Thursday.
    weekly: String(Math.floor((day + 3) / 7)),
    monthly: `${date.getUTCFullYear()}-${date.getUTCMonth()}`,
    yearly: String(date.getUTCFullYear()),
  };
}

/** No zone has changed its offset at another moment since 1972. */
const quarterMs = 15 * 60_000;
const knownMax = 100_000;
const known = new Map<string, number>();

/** What a clock on the wall shows, as if it were UTC, in milliseconds. */
function localTime(at: Date, timeZone: string): number {
  const quarter = Math.floor(at.getTime() / quarterMs) * quarterMs;
  const key = `${quarter} ${timeZone}`;
  let offset = known.get(key);
  if (offset === undefined) {
    offset = offsetAt(quarter, timeZone);
    if (known.size === knownMax) known.clear();
    known.set(key, offset);
  }
  return at.getTime() + offset;
}

const formats = new Map<string, Intl.DateTimeFormat>();

/** How far a time zone is ahead of UTC, in milliseconds. Asking takes microseconds, and the backups of many volumes begin together. */
function offsetAt(ms: number, timeZone: string): number {
  let format = formats.get(timeZone);
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-GB", {
      timeZone,
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
    });
    formats.set(timeZone, format);
  }
  const part: Record<string, string> = {};
  for (const { type, value } of format.formatToParts(ms)) part[type] = value;
  const number = (name: string) => Number(part[name]);
  const day = Date.UTC(number("year"), number("month") - 1, number("day"));
  return day + ((number("hour") * 60 + number("minute")) * 60 + number("second")) * 1000 - ms;
}
