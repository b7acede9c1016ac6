/** Numbers, times and foreign texts as the console writes them. Pure. */

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] as const;

/** Three digits: `61.2 GiB`. */
export function bytesText(bytes: number | null | undefined): string {
  if (bytes === null || bytes === undefined) return "—";
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/** `412 MiB/s`; a dash when nothing moved. */
export const rateText = (bytesPerSecond: number | null | undefined): string =>
  bytesPerSecond ? `${bytesText(bytesPerSecond)}/s` : "—";

export const countText = (count: number): string => count.toLocaleString("en-US");

/** Two units: `6 min 10 s`, `31 h`, `4 d`. */
export function durationText(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 48 * 3_600) return pair(Math.floor(whole / 3_600), "h", Math.floor((whole % 3_600) / 60), "min");
  return pair(Math.floor(whole / 86_400), "d", Math.floor((whole % 86_400) / 3_600), "h");
}

/** With tenths below ten seconds: `0.4 s`. */
export const spanText = (ms: number): string =>
  ms < 9_950 ? `${(Math.max(0, ms) / 1_000).toFixed(1)} s` : durationText(ms / 1_000);

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 || large >= 10 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}

/** Rounded up, never 0 while it runs; empty when nothing is known. */
export function leftText(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `about ${Math.max(5, Math.ceil(seconds / 5) * 5)} s left`;
  return `about ${durationText(Math.ceil(seconds / 60) * 60)} left`;
}

/** Of what is done, never 100 before the end. */
export function percent(done: number, total: number, isEnded: boolean): number {
  if (isEnded) return 100;
  return total <= 0 ? 0 : Math.min(99, Math.floor((done / total) * 100));
}

const weekMs = 7 * 86_400_000;

/** `11 s ago` within seven days, otherwise the date; times ahead as `in 5 min`. */
export function ageText(at: string, nowMs: number, zone: Zone): string {
  const ms = nowMs - Date.parse(at);
  if (Number.isNaN(ms)) return "—";
  if (Math.abs(ms) > weekMs) return timeText(at, zone).slice(0, 10);
  return ms >= -999 ? `${durationText(ms / 1_000)} ago` : `in ${durationText(-ms / 1_000)}`;
}

export type Zone = "utc" | "local";

const two = (value: number): string => String(value).padStart(2, "0");

/** `2026-11-27 02:00:00 +01:00`: always with its offset. */
export function timeText(at: string, zone: Zone): string {
  const time = new Date(at);
  if (Number.isNaN(time.getTime())) return "—";
  const offset = zone === "utc" ? 0 : -time.getTimezoneOffset();
  const moved = new Date(time.getTime() + offset * 60_000);
  const clock = moved.toISOString().slice(0, 19).replace("T", " ");
  const size = Math.abs(offset);
  return `${clock} ${offset < 0 ? "-" : "+"}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}

/** The calendar day so many days after one, each as `2026-10-25`: whatever clocks do on them. */
export const dayAfter = (day: string, days: number): string =>
  new Date(Date.parse(day) + days * 86_400_000).toISOString().slice(0, 10);

/** Characters that turn the direction of what follows, or cannot be seen: controls, formats, separators of lines. */
const hidden = /[\p{Cc}\p{Cf}\u2028\u2029]/gu;

/** Text that others chose, as it is to be shown: what would hide or reorder it is spelled out, as `\u202e`. */
export const shown = (text: string): string =>
  text.replace(hidden, (letter) => `\\u${(letter.codePointAt(0) ?? 0).toString(16).padStart(4, "0")}`);

/** The first eight characters of an id. */
export const shortId = (id: string): string => id.slice(0, 8);

/** A word for a command line. */
export const quoted = (word: string): string =>
  /^[\w./:=@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
