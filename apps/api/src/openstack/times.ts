/** UTC, no zone, always six digits: gophercloud cannot parse anything else (API spec 1.5). */
export const timeText = (time: Date): string => `${time.toISOString().slice(0, -1)}000`;

export const timeOrNull = (time: Date | null): string | null => (time === null ? null : timeText(time));
