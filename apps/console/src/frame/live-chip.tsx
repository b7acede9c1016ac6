import { Button } from "react-aria-components/Button";
import { togglePause } from "../data/live.ts";
import { type Liveness, useLiveness } from "../data/liveness.ts";
import { shown, timeText } from "../parts/format.ts";
import { usePreferences } from "../parts/preferences.ts";
import { ToneIcon } from "../parts/status.tsx";
import type { Tone } from "../parts/words.ts";

const looks: Readonly<Record<Liveness["kind"], readonly [sign: string, text: string, tone: Tone]>> = {
  connecting: ["◌", "Connecting", "gone"],
  live: ["●", "Live", "ok"],
  polling: ["◌", "Every 5 s", "work"],
  paused: ["⏸", "Paused", "warn"],
  offline: ["✖", "Offline", "bad"],
};

/** How what is shown stays true; pressed, it stands still, and goes on. */
export function LiveChip() {
  const { kind, since } = useLiveness();
  const { zone } = usePreferences();
  const [sign, text, tone] = looks[kind];
  return (
    <span role="status">
      <Button className={`chip tone-${tone}`} onPress={togglePause}>
        <span aria-hidden="true">{sign}</span>
        <span className="chip-word">
          {text}
          {kind === "offline" && ` since ${timeText(new Date(since).toISOString(), zone).slice(11, 19)}`}
        </span>
      </Button>
    </span>
  );
}

/** What the service says for itself while nothing can be asked. */
export function Away() {
  const { kind, reason } = useLiveness();
  if (kind !== "offline") return null;
  return (
    <p className="banner tone-bad" role="alert">
      <ToneIcon tone="bad" />
      <span>{shown(reason ?? "")} It is tried again every few seconds; what is shown is from before.</span>
    </p>
  );
}
