import { Link } from "@tanstack/react-router";
import type { Repository } from "@tephra/wire";
import { call } from "../data/api.ts";
import { useMay } from "../data/session.tsx";
import { Action } from "./action.tsx";
import { bytesText, countText, quoted, shown } from "./format.ts";
import { Facts } from "./panel.tsx";
import { Bytes } from "./texts.tsx";
import { Age } from "./time.tsx";

function Pass({ of }: { of: Repository["last_reap"] }) {
  if (of === null) return <>never</>;
  return (
    <Link to="/operations/$id" params={{ id: of.operation_id }}>
      <Age at={of.at} />, {of.state}
    </Link>
  );
}

/** What admins do with a repository. */
export function RepositoryActions({ name }: { name: string }) {
  const may = useMay();
  const params = { name };
  return (
    <div className="page-actions">
      {may("ops:reap") && (
        <>
          <Action
            label="Reap, dry run"
            run={() => call("POST /ops/repositories/:name/reap", { params, body: { dry_run: true } })}
            done="What would be removed is listed in the operation."
          />
          <Action
            label="Reap"
            isDanger
            name={name}
            effects={<p>What belongs to no backup, and is old enough, is removed. A dry run lists it first.</p>}
            command={`tephra repository reap ${quoted(name)}`}
            run={() => call("POST /ops/repositories/:name/reap", { params, body: {} })}
            done="The repository is being reaped."
          />
        </>
      )}
      {may("ops:rescan") && (
        <Action
          label="Rescan"
          effects={<p>Backups that are in the repository, but not known here, are entered.</p>}
          run={() => call("POST /ops/repositories/:name/rescan", { params, body: {} })}
          done="The repository is being scanned."
        />
      )}
    </div>
  );
}

/** What is known of a repository, and who does not reach it. */
export function RepositoryFacts({ of: one }: { of: Repository }) {
  return (
    <>
      <Facts
        of={[
          ["Driver", `${one.driver}${one.default ? ", the default one" : ""}`],
          ["Zone", shown(one.zone)],
          ["Encrypted", one.encrypted ? "yes" : "no"],
          ["Reached by", `${countText(one.reached_by.length)} workers`],
          ["Backups", countText(one.backups)],
          ["Of volumes", <Bytes key="bytes" bytes={one.bytes} />],
          ["Stored", <Bytes key="stored" bytes={one.stored_bytes} />],
          [
            "Grows by",
            one.stored_per_day === null
              ? "not known before two days"
              : `${bytesText(Math.max(0, one.stored_per_day))} a day`,
          ],
          ["Proven within 7 days", countText(one.proof.week)],
          ["Free", one.free_bytes === null ? "nothing says" : <Bytes key="free" bytes={one.free_bytes} />],
          ["Full", one.full_at === null ? "—" : <Age key="full" at={one.full_at} />],
          ["Answers within", one.probe_ms === null ? null : `${countText(one.probe_ms)} ms`],
          ["Tasks at once", one.max_running_tasks === null ? "any number" : countText(one.max_running_tasks)],
          ["Master keys", one.encrypted ? one.key_versions.map(shown).join(", ") || "none is known" : null],
          ["Last reap", <Pass key="reap" of={one.last_reap} />],
          ["Last rescan", <Pass key="rescan" of={one.last_rescan} />],
        ]}
      />
      {one.unreachable_from.map(({ worker, why }) => (
        <p key={worker} className="stale">
          {shown(worker)}: {shown(why)}
        </p>
      ))}
    </>
  );
}
