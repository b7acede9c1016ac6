import {
  CheckCheck,
  CircleCheck,
  CircleDashed,
  CirclePlay,
  Diamond,
  type LucideIcon,
  OctagonX,
  TriangleAlert,
  Undo2,
} from "lucide-react";
import { shown } from "./format.ts";
import { type Tone, toneOf } from "./words.ts";

const icons: Readonly<Record<Tone, LucideIcon>> = {
  ok: CircleCheck,
  work: CirclePlay,
  restore: Undo2,
  proof: CheckCheck,
  warn: TriangleAlert,
  risk: Diamond,
  bad: OctagonX,
  gone: CircleDashed,
};

export function ToneIcon({ tone }: { tone: Tone }) {
  const Icon = icons[tone];
  return <Icon className={`tone-icon tone-${tone}`} size={16} aria-hidden="true" />;
}

/** Icon and word of a state. `tone`: where the word alone does not say it. */
export function Status({ state, tone = toneOf(state) }: { state: string; tone?: Tone }) {
  return (
    <span className={`status tone-${tone}`}>
      <ToneIcon tone={tone} />
      {shown(state)}
    </span>
  );
}
