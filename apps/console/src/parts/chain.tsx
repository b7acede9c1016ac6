import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { BackupHealth } from "@tephra/wire";
import { Circle, CircleDot, OctagonX } from "lucide-react";
import { readChain } from "../data/chain.ts";
import { freshness } from "../data/queries.ts";
import { shown } from "./format.ts";
import { Panel } from "./panel.tsx";
import { Loaded } from "./states.tsx";
import { Bytes, Id } from "./texts.tsx";
import { Age } from "./time.tsx";

export const chainQuery = (id: string) => ({
  queryKey: ["chain", id],
  queryFn: ({ signal }: { signal: AbortSignal }) => readChain(id, signal),
  ...freshness({ on: ["operation"] }),
});

function Member({ of, most, isThis }: { of: BackupHealth; most: number; isThis: boolean }) {
  const kind = of.parent_id === null ? "full" : "incremental";
  const Icon = of.damage ? OctagonX : of.parent_id === null ? CircleDot : Circle;
  return (
    <li className={of.damage ? "is-damaged" : undefined} aria-current={isThis ? "true" : undefined}>
      <Icon size={16} aria-hidden="true" />
      <Link to="/backups/$id" params={{ id: of.id }}>
        <Id id={of.id} />
      </Link>
      <span>{kind}</span>
      <span className="is-number">
        <Bytes bytes={of.stored_bytes} />
      </span>
      <meter min={0} max={Math.max(1, most)} value={of.stored_bytes ?? 0} aria-label="Stored bytes" />
      <span>
        {of.damage ? (
          <span className="tone-bad">damaged: {shown(of.damage)}</span>
        ) : of.verified_at ? (
          <span className="tone-proof">
            proven <Age at={of.verified_at} />, {of.verified_mode}
          </span>
        ) : (
          <span className="second">never proven</span>
        )}
      </span>
    </li>
  );
}

/** A backup and what it builds on, newest above. */
export function ChainPanel({ id }: { id: string }) {
  const query = useQuery(chainQuery(id));
  return (
    <Panel title="Chain" facts="What a restore reads, newest first.">
      <Loaded query={query}>
        {({ members, isWhole }) => {
          const stored = members.reduce((sum, { stored_bytes }) => sum + (stored_bytes ?? 0), 0);
          const most = Math.max(...members.map(({ stored_bytes }) => stored_bytes ?? 0));
          return (
            <>
              <ol className="chain">
                {members.map((member) => (
                  <Member key={member.id} of={member} most={most} isThis={member.id === id} />
                ))}
              </ol>
              <p>
                {members.length === 1 && isWhole ? "It stands alone: " : ""}A restore reads{" "}
                {isWhole ? "" : "more than "}
                {members.length} {members.length === 1 ? "member" : "members"}, at most <Bytes bytes={stored} />.
              </p>
            </>
          );
        }}
      </Loaded>
    </Panel>
  );
}
