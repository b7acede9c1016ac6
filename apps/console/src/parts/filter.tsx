import { X } from "lucide-react";
import { Button } from "react-aria-components/Button";
import type { Filters } from "./address.ts";
import { countText, shortId, shown } from "./format.ts";
import { ToneIcon } from "./status.tsx";
import { toneOf } from "./words.ts";

interface States {
  /** The key of the query string. */
  name: string;
  label: string;
  states: readonly string[];
  counts?: Readonly<Record<string, number | undefined>> | undefined;
  /** What they are called, where that is another word. */
  words?: Readonly<Record<string, string>>;
  /** What is shown without a choice; it cannot be taken off. */
  initial?: string;
}

/**
 * What a list is filtered by: states with their counts, as buttons, whose second press takes the filter off; texts to be typed; and what else the
 * address names, to be taken off.
 */
export function FilterBar({
  filters,
  of,
  beside = [],
  texts = [],
}: {
  filters: Filters;
  of?: States;
  /** Others, which are chosen by themselves. */
  beside?: readonly States[];
  texts?: readonly (readonly [name: string, label: string])[];
}) {
  const { values, set } = filters;
  const own = [...texts.map(([name]) => name), ...beside.map(({ name }) => name), of?.name, "marker"];
  const others = Object.entries(values).filter(([name, value]) => value !== undefined && !own.includes(name));
  return (
    <>
      {of && <StateChips of={of} filters={filters} />}
      {beside.map((one) => (
        <StateChips key={one.name} of={one} filters={filters} />
      ))}
      {others.length > 0 && (
        <div className="chips">
          {others.map(([name, value = ""]) => (
            <Button
              key={name}
              className="chip-button"
              aria-label={`Take off the filter ${name}`}
              onPress={() => set({ [name]: undefined })}
            >
              {name.replace(/_id$/, "")} {shown(shortId(value))} <X size={16} aria-hidden="true" />
            </Button>
          ))}
        </div>
      )}
      {texts.length > 0 && (
        <form
          className="filters"
          onSubmit={(event) => {
            event.preventDefault();
            const form = new FormData(event.currentTarget);
            set(Object.fromEntries(texts.map(([name]) => [name, String(form.get(name) ?? "").trim() || undefined])));
          }}
        >
          {texts.map(([name, label]) => (
            <label key={`${name} ${values[name]}`} className="field">
              {label}
              <input name={name} defaultValue={values[name] ?? ""} spellCheck={false} />
            </label>
          ))}
          <button type="submit" className="button is-quiet">
            Filter
          </button>
        </form>
      )}
    </>
  );
}

function StateChips({
  of: { name, label, states, counts, initial, words = {} },
  filters: { values, set },
}: {
  of: States;
  filters: Filters;
}) {
  const value = values[name] ?? initial;
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset cannot be laid out as a line in every browser
    <div className="chips" role="group" aria-label={label}>
      {states.map((state) => (
        <button
          key={state}
          type="button"
          className="chip-button"
          aria-pressed={value === state}
          onClick={() => set({ [name]: value === state ? undefined : state })}
        >
          <ToneIcon tone={toneOf(state)} />
          {shown(words[state] ?? state)}
          {counts && <b>{countText(counts[state] ?? 0)}</b>}
        </button>
      ))}
    </div>
  );
}

/** One of several, always one. */
export function Choice({
  label,
  value,
  of,
  onChange,
}: {
  label: string;
  value: string;
  of: readonly (readonly [value: string, text: string])[];
  onChange: (value: string) => void;
}) {
  return (
    <label className="field">
      {label}
      <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {of.map(([name, text]) => (
          <option key={name} value={name}>
            {text}
          </option>
        ))}
      </select>
    </label>
  );
}

/** Why a list is empty: nothing matches, and how to see more; or there is none, and how the first is made. */
export function Empty({ filters, what, children }: { filters: Filters; what: string; children: React.ReactNode }) {
  if (!filters.isFiltered) return children;
  return (
    <>
      <p>{what}</p>
      <Button className="button is-quiet" onPress={filters.clear}>
        Take the filters off
      </Button>
    </>
  );
}

/** To the next page of a list, and back to its start. */
export function Pages({ filters: { values, go }, next }: { filters: Filters; next: string | null | undefined }) {
  const isFirst = values["marker"] === undefined;
  if (isFirst && !next) return null;
  return (
    <nav className="pages" aria-label="Pages of the list">
      <Button className="button is-quiet" data-key="[" isDisabled={isFirst} onPress={() => go(undefined)}>
        First page
      </Button>
      <Button className="button is-quiet" data-key="]" isDisabled={!next} onPress={() => go(next ?? undefined)}>
        Next page
      </Button>
    </nav>
  );
}
