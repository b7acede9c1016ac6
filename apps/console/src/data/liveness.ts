import { useSyncExternalStore } from "react";

/**
 * How what is shown stays true: by the stream of events, by asking for changes, not at all because somebody wants it so, or not at all because
 * the service is away.
 */
export interface Liveness {
  kind: "connecting" | "live" | "polling" | "paused" | "offline";
  /** Milliseconds since 1970. */
  since: number;
  /** Why it is offline, in the service's words. */
  reason: string | null;
}

let current: Liveness = { kind: "connecting", since: Date.now(), reason: null };
const listeners = new Set<() => void>();

export const getLiveness = (): Liveness => current;

export function setLiveness(kind: Liveness["kind"], reason: string | null = null): void {
  if (current.kind === kind && current.reason === reason) return;
  current = { kind, reason, since: current.kind === kind ? current.since : Date.now() };
  for (const tell of listeners) tell();
}

export function useLiveness(): Liveness {
  return useSyncExternalStore((tell) => {
    listeners.add(tell);
    return () => listeners.delete(tell);
  }, getLiveness);
}
