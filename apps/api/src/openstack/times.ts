/** UTC, no zone, always six digits: gophercloud cannot parse anything else (cinder-api 1.4). */
export const timeText = (time: Date): string => `${time.toISOString().slice(0, -1)}000`;

export const timeOrNull = (time: Date | null): string | null => (time === null ? null : timeText(time));
