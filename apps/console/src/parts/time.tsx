import { createContext, useContext, useEffect, useState } from "react";
import { ageText, timeText } from "./format.ts";
import { usePreferences } from "./preferences.ts";

const Now = createContext(Date.now());

/** One clock for all ages of a page. */
export function Clock({ children }: { children: React.ReactNode }) {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1_000);
    return () => clearInterval(timer);
  }, []);
  return <Now value={now}>{children}</Now>;
}

export const useNow = (): number => useContext(Now);

/** An age; the time itself on hover. Null: a dash. */
export function Age({ at }: { at: string | null | undefined }) {
  const now = useNow();
  const { zone } = usePreferences();
  if (!at) return <span className="second">—</span>;
  return (
    <time dateTime={at} title={timeText(at, zone)}>
      {ageText(at, now, zone)}
    </time>
  );
}

/** The time itself, with its offset. */
export function Moment({ at }: { at: string | null | undefined }) {
  const { zone } = usePreferences();
  if (!at) return <span className="second">—</span>;
  return <time dateTime={at}>{timeText(at, zone)}</time>;
}
