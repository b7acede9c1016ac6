import { useQueryClient } from "@tanstack/react-query";
import { useRef, useState } from "react";
import { Button } from "react-aria-components/Button";
import { Action } from "./action.tsx";
import { countText, shown } from "./format.ts";
import { Foreign } from "./texts.tsx";

/** So many requests of one deed are on their way at a time. */
const atOnce = 4;

interface Row {
  id: string;
  name: string | null;
}

interface Refusal extends Row {
  why: string;
}

/** What may be done with many rows. `run` does it with one. */
export interface Deed {
  label: string;
  effects: React.ReactNode;
  isDanger?: boolean;
  run: (id: string) => Promise<unknown>;
}

interface Outcome {
  label: string;
  asked: number;
  done: number;
  refused: Refusal[];
  isOver: boolean;
}

/** What was chosen of a list, and what can be done with all of it; the outcome of each row that was refused. */
export function Bulk({ rows, deeds, clear }: { rows: readonly Row[]; deeds: readonly Deed[]; clear: () => void }) {
  const queries = useQueryClient();
  const [outcome, setOutcome] = useState<Outcome | null>(null);
  const isStopped = useRef(false);

  const start = async ({ label, run }: Deed): Promise<void> => {
    isStopped.current = false;
    const left = [...rows];
    const so: Outcome = { label, asked: left.length, done: 0, refused: [], isOver: false };
    const work = async (): Promise<void> => {
      for (let row = left.shift(); row !== undefined && !isStopped.current; row = left.shift()) {
        const { id, name } = row;
        await run(id).then(
          () => {
            so.done += 1;
          },
          (error: Error) => so.refused.push({ id, name, why: error.message }),
        );
        setOutcome({ ...so });
      }
    };
    setOutcome({ ...so });
    clear();
    await Promise.all(Array.from({ length: atOnce }, work));
    setOutcome({ ...so, isOver: true });
    await queries.invalidateQueries();
  };

  const isRunning = outcome !== null && !outcome.isOver;
  return (
    <>
      {rows.length > 0 && (
        <div className="bulk" role="toolbar" aria-label="What was chosen">
          <b>{countText(rows.length)} chosen</b>
          {deeds.map((deed) => (
            <Action
              key={deed.label}
              label={`${deed.label} ${countText(rows.length)}`}
              isDanger={deed.isDanger ?? false}
              effects={deed.effects}
              why={isRunning ? "one such is going on" : null}
              run={() => start(deed)}
              done="All were asked for."
            />
          ))}
          <Button className="button is-quiet" onPress={clear}>
            Choose none
          </Button>
        </div>
      )}
      {outcome && (
        <section className="panel" aria-label="What became of it" aria-live="polite">
          <p>
            {outcome.label}: {countText(outcome.done)} of {countText(outcome.asked)} accepted,{" "}
            {countText(outcome.refused.length)} refused
            {outcome.isOver && outcome.done + outcome.refused.length < outcome.asked && ", the others were left alone"}.{" "}
            {isRunning ? (
              <Button
                className="button is-quiet"
                onPress={() => {
                  isStopped.current = true;
                }}
              >
                Stop
              </Button>
            ) : (
              <Button className="button is-quiet" onPress={() => setOutcome(null)}>
                Close
              </Button>
            )}
          </p>
          {outcome.refused.length > 0 && (
            <ul className="refused">
              {outcome.refused.map(({ id, name, why }) => (
                <li key={id}>
                  <Foreign text={name} empty={id} />: {shown(why)}
                </li>
              ))}
            </ul>
          )}
        </section>
      )}
    </>
  );
}
