import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { BackupChain } from "@tephra/wire";
import { Circle, CircleDot, OctagonX } from "lucide-react";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { route } from "../data/queries.ts";
import { countText, shown } from "./format.ts";
import { foldsOf, lanesOf } from "./lanes.ts";
import { Panel } from "./panel.tsx";
import { Loaded } from "./states.tsx";
import { Bytes, Foreign } from "./texts.tsx";
import { Age } from "./time.tsx";

type ChainMember = BackupChain["members"][number];

/** Of longer chains the middle is folded. */
const shownMax = 8;
const lanesMax = 8;

function Health({ of }: { of: ChainMember }) {
  if (of.damage) return <span className="tone-bad">damaged: {shown(of.damage)}</span>;
  if (!of.sound) return <span className="tone-risk">builds on what is damaged</span>;
  if (of.proof === null) return <span className="second">never proven</span>;
  return (
    <span className="tone-proof">
      proven <Age at={of.proof.at} />, {of.proof.mode}
    </span>
  );
}

/** Where a member is among the branches: its own lane, and those that pass beside it. */
function Lanes({ lane, passing, count, of }: { lane: number; passing: number[]; count: number; of: ChainMember }) {
  const Icon = of.damage ? OctagonX : of.kind === "full" ? CircleDot : Circle;
  return (
    <span className="lanes" aria-hidden="true">
      {Array.from({ length: count }, (_, at) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: a lane is its place
        <span key={at} className={passing.includes(at) ? "lane is-passing" : "lane"}>
          {at === lane && <Icon size={16} />}
        </span>
      ))}
    </span>
  );
}

function Member({
  of,
  most,
  isThis,
  children,
}: {
  of: ChainMember;
  most: number;
  isThis: boolean;
  children: React.ReactNode;
}) {
  const looks = [of.damage ? "is-damaged" : "", of.sound ? "" : "is-risky", of.read ? "is-read" : ""].join(" ").trim();
  return (
    <li className={looks || undefined} aria-current={isThis ? "true" : undefined}>
      {children}
      <Link to="/backups/$id" params={{ id: of.id }}>
        <Foreign text={of.name} empty={of.id.slice(0, 8)} />
      </Link>
      <span>{of.kind}</span>
      <Age at={of.data_timestamp} />
      <span className="is-number">
        <Bytes bytes={of.stored_bytes} />
      </span>
      <meter min={0} max={Math.max(1, most)} value={of.stored_bytes ?? 0} aria-label="Stored bytes" />
      <Health of={of} />
    </li>
  );
}

/** Up and down move from one member to the next, as in tables. */
function onKeyDown(event: React.KeyboardEvent<HTMLOListElement>): void {
  const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
  if (step === 0) return;
  const stops = [...event.currentTarget.querySelectorAll<HTMLElement>("a, button")];
  const next = stops[stops.indexOf(event.target as HTMLElement) + step];
  if (next === undefined) return;
  next.focus();
  event.preventDefault();
}

function Drawn({ id, members }: { id: string; members: readonly ChainMember[] }) {
  const [isOpen, setOpen] = useState(false);
  const lanes = lanesOf(members);
  const count = Math.min(lanesMax, 1 + Math.max(...lanes.map(({ lane }) => lane)));
  const most = Math.max(...members.map(({ stored_bytes }) => stored_bytes ?? 0));
  // Where branches begin and end, what is damaged, and the backup itself are never folded.
  const isPlain = members.map((member) => {
    const children = members.filter(({ parent_id }) => parent_id === member.id);
    return children.length === 1 && member.kind === "incremental" && member.damage === null && member.id !== id;
  });
  const folds = isOpen ? [] : foldsOf(isPlain, shownMax);
  return (
    <ol className="chain" onKeyDown={onKeyDown}>
      {members.map((member, at) => {
        const fold = folds.find(({ from, count: folded }) => at >= from && at < from + folded);
        if (fold !== undefined && at !== fold.from) return null;
        if (fold !== undefined) {
          return (
            <li key={member.id} className="is-fold">
              <Button className="button is-quiet" onPress={() => setOpen(true)}>
                {countText(fold.count)} more
              </Button>
            </li>
          );
        }
        const { lane, passing } = lanes[at] ?? { lane: 0, passing: [] };
        return (
          <Member key={member.id} of={member} most={most} isThis={member.id === id}>
            <Lanes lane={lane} passing={passing} count={count} of={member} />
          </Member>
        );
      })}
    </ol>
  );
}

/** All that hangs together with a backup, newest above; branches beside each other. */
export function ChainPanel({ id }: { id: string }) {
  const query = useQuery(route("GET /ops/backups/:id/chain", { params: { id } }, { on: ["backup"] }));
  return (
    <Panel title="Chain" facts="What it builds on and what builds on it, newest first; a restore reads what is bold.">
      <Loaded query={query}>
        {({ members, restore }) => (
          <>
            <Drawn id={id} members={members} />
            <p>
              {restore === null ? (
                "Something that it builds on is gone: it cannot be restored."
              ) : (
                <>
                  {members.length === 1 ? "It stands alone: a" : "A"} restore reads {countText(restore.members)}{" "}
                  {restore.members === 1 ? "member" : "members"}, {countText(restore.objects)} objects, at most{" "}
                  <Bytes bytes={restore.stored_bytes} />.
                </>
              )}
            </p>
          </>
        )}
      </Loaded>
    </Panel>
  );
}
