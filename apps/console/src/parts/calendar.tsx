import { useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { route } from "../data/queries.ts";
import { dayAfter, timeText, type Zone } from "./format.ts";
import { Panel } from "./panel.tsx";
import { usePreferences } from "./preferences.ts";
import { Loaded } from "./states.tsx";

/** What each letter of a day means, and how it is drawn: never by colour alone. */
const looks: Readonly<Record<string, readonly [name: string, words: string, sign: string]>> = {
  R: ["restorable", "can be restored", ""],
  p: ["pruned", "was made, and has been deleted since", ""],
  F: ["failed", "failed, or is damaged", "✕"],
  M: ["missed", "was due, and missed", "!"],
  X: ["excluded", "excluded", ""],
  ".": ["nothing", "nothing was due", "·"],
  "-": ["before", "the volume did not exist", ""],
};

const localDay = (ms: number, zone: Zone): string => timeText(new Date(ms).toISOString(), zone).slice(0, 10);

/** The days of at most a hundred volumes, until today. */
export function useDays(ids: readonly string[], count: number) {
  const { zone } = usePreferences();
  const to = localDay(Date.now(), zone);
  const from = dayAfter(to, 1 - count);
  const tz = zone === "utc" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone;
  return useQuery({
    ...route("GET /ops/protection/days", { query: { volume_id: ids.join(","), from, to, tz } }, { on: ["backup"] }),
    enabled: ids.length > 0,
  });
}

/** Days that have backups to look at. */
const opens = "RF";

/** The backups of a volume of one local day, as the list is asked for them. */
function searchOf(volume: string, day: string, zone: Zone): Record<string, string> {
  const startOf = (date: string): string => new Date(`${date}T00:00:00${zone === "utc" ? "Z" : ""}`).toISOString();
  return { volume_id: volume, from: startOf(day), to: startOf(dayAfter(day, 1)) };
}

/** One square for each day, the newest last; one that has backups leads to them. `isByWeek`: a column a week, from Monday. */
export function Days({
  id,
  from,
  days,
  isByWeek = false,
}: {
  id: string;
  from: string;
  days: string;
  isByWeek?: boolean;
}) {
  const navigate = useNavigate();
  const { zone } = usePreferences();
  const weekday = (new Date(from).getUTCDay() + 6) % 7;
  return (
    <ol className={isByWeek ? "days is-by-week" : "days"}>
      {[...days].map((letter, at) => {
        const [name, words, sign] = looks[letter] ?? ["nothing", "is not known", "?"];
        const day = dayAfter(from, at);
        return (
          <li
            key={day}
            className={`day day-${name}`}
            title={`${day}: ${words}`}
            style={isByWeek && at === 0 ? { gridRowStart: weekday + 1 } : undefined}
          >
            <span aria-hidden="true">{sign}</span>
            {opens.includes(letter) ? (
              // A plain one: there may be thousands on a page.
              <a
                href={`/console/backups?${new URLSearchParams(searchOf(id, day, zone))}`}
                onClick={(event) => {
                  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                  event.preventDefault();
                  void navigate({ to: "/backups", search: searchOf(id, day, zone) as never });
                }}
              >
                <span className="away">
                  {day}: {words}
                </span>
              </a>
            ) : (
              <span className="away">
                {day}: {words}
              </span>
            )}
          </li>
        );
      })}
    </ol>
  );
}

export function DaysLegend() {
  return (
    <p className="legend second">
      {["R", "p", "F", "M", "X"].map((letter) => {
        const [name = "", words = "", sign = ""] = looks[letter] ?? [];
        return (
          <span key={letter} className="status">
            <span className={`day day-${name}`} aria-hidden="true">
              {sign}
            </span>
            {words}
          </span>
        );
      })}
    </p>
  );
}

const weeks = 26;

/** Half a year of one volume. */
export function CalendarPanel({ id }: { id: string }) {
  const query = useDays([id], weeks * 7);
  return (
    <Panel title="Calendar" facts="Filled: one can go back to that day.">
      <Loaded query={query} lines={7}>
        {({ from, volumes: [volume] }) =>
          volume ? (
            <>
              <Days id={id} from={from} days={volume.days} isByWeek />
              <DaysLegend />
            </>
          ) : (
            <p>Nothing is known of it.</p>
          )
        }
      </Loaded>
    </Panel>
  );
}
