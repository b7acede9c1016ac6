import { useQuery } from "@tanstack/react-query";
import { route } from "../data/queries.ts";
import { countText } from "./format.ts";
import { Panel } from "./panel.tsx";
import { Loaded } from "./states.tsx";

/** What each letter of a range means, the worst first: where there are too many ranges, the worst of several is shown. */
const words: readonly (readonly [letter: string, name: string, text: string])[] = [
  ["x", "failed", "failed or cancelled"],
  ["t", "taken", "taken over from a worker that is gone"],
  ["r", "running", "running"],
  ["h", "handed", "handed to a worker"],
  [".", "waiting", "waiting"],
  ["d", "done", "done"],
];
const cellsMax = 200;

interface Cell {
  at: number;
  name: string;
  /** Of what is done: how much was stored of it, 0 to 1. */
  density: number;
}

/** At most two hundred cells for all ranges of a volume. */
function cellsOf(states: string, density: string): Cell[] {
  const stored = atob(density);
  const size = Math.ceil(states.length / cellsMax);
  return Array.from({ length: Math.ceil(states.length / size) }, (_, index) => {
    const at = index * size;
    const letters = states.slice(at, at + size);
    const bytes = [...stored.slice(at, at + size)].map((letter) => letter.charCodeAt(0) / 255);
    const [, name = "waiting"] = words.find(([letter]) => letters.includes(letter)) ?? [];
    return { at, name, density: bytes.reduce((sum, value) => sum + value, 0) / Math.max(1, bytes.length) };
  });
}

/** The ranges of a volume, from its start to its end; those with more stored are darker. */
export function RangesPanel({ id, isMoving }: { id: string; isMoving: boolean }) {
  const query = useQuery(
    route("GET /ops/operations/:id/ranges", { params: { id } }, { on: [], everyMs: isMoving ? 2_000 : false }),
  );
  if (query.data && query.data.states.length < 2) return null;
  return (
    <Panel title="Ranges" facts="From the start of the volume to its end; darker where more was stored.">
      <Loaded query={query} lines={1}>
        {({ states, density }) => {
          const told = words.flatMap(([letter, , text]) => {
            const count = states.split(letter).length - 1;
            return count === 0 ? [] : [`${countText(count)} ${text}`];
          });
          const summary = `${countText(states.length)} ranges: ${told.reverse().join(", ")}`;
          return (
            <>
              <div className="ranges" role="img" aria-label={summary}>
                {cellsOf(states, density).map(({ at, name, density: share }) => (
                  <span
                    key={at}
                    className={`range range-${name}`}
                    style={name === "done" ? { opacity: 0.3 + 0.7 * share } : undefined}
                  />
                ))}
              </div>
              <p>{summary}.</p>
            </>
          );
        }}
      </Loaded>
    </Panel>
  );
}
