/** What each state looks like: never by colour alone, always icon, word and colour. */
export type Tone = "ok" | "work" | "restore" | "proof" | "warn" | "risk" | "bad" | "gone";

const tones: Readonly<Record<string, Tone>> = {
  available: "ok",
  "in-use": "ok",
  protected: "ok",
  succeeded: "ok",
  delivered: "ok",
  live: "ok",
  ran: "ok",
  active: "ok",
  creating: "work",
  running: "work",
  dispatched: "work",
  "backing-up": "work",
  pending: "work",
  restoring: "restore",
  "restoring-backup": "restore",
  verifying: "proof",
  late: "warn",
  silent: "warn",
  perhaps: "warn",
  "at risk": "risk",
  error_restoring: "risk",
  error_deleting: "risk",
  error_extending: "risk",
  error: "bad",
  failed: "bad",
  never: "bad",
  dead: "bad",
  missed: "bad",
  down: "bad",
  damaged: "bad",
  deleting: "gone",
  deleted: "gone",
  cancelled: "gone",
  excluded: "gone",
  queued: "gone",
  waiting: "gone",
  skipped: "gone",
  disabled: "gone",
};

/** States that the console does not know are neither good nor bad. */
export const toneOf = (state: string): Tone =>
  tones[state.toLowerCase()] ?? (state.startsWith("error") ? "bad" : "gone");
