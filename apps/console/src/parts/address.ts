import { useNavigate, useParams, useSearch } from "@tanstack/react-router";

/** What a list shows of all there is, and which page of that, by keys of the query string. */
export interface Filters {
  /** With `marker`, where the page begins. */
  values: Readonly<Record<string, string | undefined>>;
  isFiltered: boolean;
  /** Shows the first page of what matches. */
  set: (changed: Record<string, string | undefined>) => void;
  clear: () => void;
  go: (marker: string | undefined) => void;
}

export function useFilters(...names: readonly string[]): Filters {
  const search = useSearch({ strict: false }) as Readonly<Record<string, string | undefined>>;
  const navigate = useNavigate();
  const change = (changed: Record<string, string | undefined>) =>
    void navigate({ to: ".", search: ((now: object) => ({ ...now, ...changed })) as never });
  const values = Object.fromEntries([...names, "marker"].map((name) => [name, search[name]]));
  const set = (changed: Record<string, string | undefined>) => change({ ...changed, marker: undefined });
  return {
    values,
    isFiltered: Object.values(values).some((value) => value !== undefined),
    set,
    clear: () => set(Object.fromEntries(names.map((name) => [name, undefined]))),
    go: (marker) => change({ marker }),
  };
}

/** One key of the query string that is no filter. */
export const useParameter = (name: string): string | undefined =>
  (useSearch({ strict: false }) as Readonly<Record<string, string | undefined>>)[name];

/** The `:id` of the page's path. */
export const useId = (): string => String(useParams({ strict: false })["id" as never] ?? "");
