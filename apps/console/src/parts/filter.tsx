import { Button } from "react-aria-components/Button";
import { countText, shown } from "./format.ts";
import { ToneIcon } from "./status.tsx";
import { toneOf } from "./words.ts";

/** States with their counts, as buttons; a second press takes the filter off. */
export function StateChips({
  label,
  states,
  counts,
  value,
  onChange,
}: {
  label: string;
  states: readonly string[];
  counts?: Readonly<Record<string, number | undefined>>;
  value: string | undefined;
  onChange: (state: string | undefined) => void;
}) {
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be laid out as a line in every browser
    <div className="chips" role="group" aria-label={label}>
      {states.map((state) => (
        <button
          key={state}
          type="button"
          className="chip-button"
          aria-pressed={value === state}
          onClick={() => onChange(value === state ? undefined : state)}
        >
          <ToneIcon tone={toneOf(state)} />
          {shown(state)}
          {counts && <b>{countText(counts[state] ?? 0)}</b>}
        </button>
      ))}
    </div>
  );
}

/** Why a list is empty, and how to see more. */
export function NoMatch({ what, onClear }: { what: string; onClear: () => void }) {
  return (
    <>
      <p>{what}</p>
      <Button className="button is-quiet" onPress={onClear}>
        Take the filters off
      </Button>
    </>
  );
}

/** To the next page of a list, and back to its start. */
export function Pages({
  isFirst,
  next,
  onGo,
}: {
  isFirst: boolean;
  next: string | null;
  onGo: (marker: string | undefined) => void;
}) {
  if (isFirst && next === null) return null;
  return (
    <nav className="pages" aria-label="Pages of the list">
      <Button className="button is-quiet" isDisabled={isFirst} onPress={() => onGo(undefined)}>
        First page
      </Button>
      <Button className="button is-quiet" isDisabled={next === null} onPress={() => onGo(next ?? undefined)}>
        Next page
      </Button>
    </nav>
  );
}
