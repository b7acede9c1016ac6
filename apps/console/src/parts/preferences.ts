import { useSyncExternalStore } from "react";
import type { Zone } from "./format.ts";

/** What a person has set in this browser. */
export interface Preferences {
  theme: "system" | "light" | "dark";
  zone: Zone;
  density: "normal" | "compact";
  /** Whether single letters are keys (WCAG 2.1.4). */
  letters: boolean;
}

const initial: Preferences = { theme: "system", zone: "local", density: "normal", letters: true };
const place = "tephra.preferences";
const listeners = new Set<() => void>();

function read(): Preferences {
  try {
    return { ...initial, ...(JSON.parse(localStorage.getItem(place) ?? "{}") as Partial<Preferences>) };
  } catch {
    return initial;
  }
}

let current = read();

function apply(): void {
  const { dataset } = document.documentElement;
  if (current.theme === "system") delete dataset["theme"];
  else dataset["theme"] = current.theme;
  dataset["density"] = current.density;
}

/** Before the first paint. */
export const applyPreferences = apply;

export function setPreferences(change: Partial<Preferences>): void {
  current = { ...current, ...change };
  try {
    localStorage.setItem(place, JSON.stringify(current));
  } catch {
    // A browser that keeps nothing: it holds until the page is left.
  }
  apply();
  for (const tell of listeners) tell();
}

export const getPreferences = (): Preferences => current;

export function usePreferences(): Preferences {
  return useSyncExternalStore((tell) => {
    listeners.add(tell);
    return () => listeners.delete(tell);
  }, getPreferences);
}
