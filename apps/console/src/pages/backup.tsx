import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { BackupDetails } from "@tephra/wire";
import { ask, call } from "../data/api.ts";
import { backupPath } from "../data/cinder.ts";
import { ofOperations, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { Action } from "../parts/action.tsx";
import { useId } from "../parts/address.ts";
import { ChainPanel } from "../parts/chain.tsx";
import { quoted, shown } from "../parts/format.ts";
import { OperationsTable } from "../parts/operations-table.tsx";
import { Facts, PageHead, Panel } from "../parts/panel.tsx";
import { Loaded } from "../parts/states.tsx";
import { Status } from "../parts/status.tsx";
import { Bytes, CopyButton, Foreign, Id } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";

const modes = [
  ["quick", "Verify quick"],
  ["deep", "Verify deep"],
  ["drill", "Restore drill"],
] as const;

/** For what is stuck: only admins see it, and only where nothing else helps. */
function Mending({ id, name, status }: { id: string; name: string; status: string }) {
  const may = useMay();
  const { project_id } = useSession();
  const act = (action: string, body: object) => ask("POST", `${backupPath(project_id, id)}/action`, { [action]: body });
  if (status === "available") return null;
  return (
    <>
      {may("volume_extension:backup_admin_actions:reset_status") && status !== "error" && (
        <Action
          label="Reset"
          effects={
            <p>
              What is being done with it is cancelled. It is in error then, or, where it was being restored, available.
            </p>
          }
          run={() => act("os-reset_status", { status: "error" })}
          done="The backup was reset."
        />
      )}
      {may("volume_extension:backup_admin_actions:force_delete") && (
        <Action
          label="Force delete"
          isDanger
          name={name}
          effects={<p>The backup is deleted in whatever state it is, with what was made of it so far.</p>}
          run={() => act("os-force_delete", {})}
          done="The backup is being deleted."
        />
      )}
    </>
  );
}

function Actions({ of: { id, actions } }: { of: BackupDetails }) {
  const may = useMay();
  const { project_id } = useSession();
  const whyNot = (name: BackupDetails["actions"][number]["name"]): string | null =>
    actions.find((action) => action.name === name)?.why ?? null;
  return (
    <>
      {may("backup:restore") && (
        <Link className="button is-primary" to="/backups/$id/restore" params={{ id }}>
          Restore…
        </Link>
      )}
      {may("ops:verify") &&
        modes.map(([mode, label]) => (
          <Action
            key={mode}
            label={label}
            why={whyNot("verify")}
            run={() => call("POST /ops/backups/:id/verify", { params: { id }, body: { mode } })}
            done="A verification was asked for."
          />
        ))}
      {may("backup:delete") && (
        <Action
          label="Delete"
          isDanger
          why={whyNot("delete")}
          effects={
            <p>
              The backup is deleted. Where its repository has a deletion delay, it can be brought back for that long.
            </p>
          }
          command={`tephra backup delete ${quoted(id)}`}
          run={() => ask("DELETE", backupPath(project_id, id))}
          done="The backup is being deleted."
        />
      )}
    </>
  );
}

/** One backup: its health, what a restore reads, and what was done with it. */
export function BackupPage() {
  const id = useId();
  const health = useQuery(route("GET /ops/backups/:id", { params: { id } }, { on: ["backup", "operation"] }));
  const operations = useQuery(route("GET /ops/operations", { query: { backup_id: id, limit: 20 } }, ofOperations));
  const named = health.data?.backup;
  return (
    <>
      <PageHead
        title={<Foreign text={named?.name} empty="Backup" />}
        facts={
          <>
            {named && <Status state={named.status} />} <code>{shown(id)}</code>{" "}
            <CopyButton text={id} label="Copy the id of the backup" />
          </>
        }
        actions={
          named && (
            <>
              <Actions of={named} />
              <Mending id={id} name={named.name ?? id} status={named.status} />
            </>
          )
        }
      />
      <Loaded query={health}>
        {({ backup }) => (
          <>
            {backup.fail_reason && (
              <div className="fault" role="note">
                <strong>Why it is not good.</strong>
                <p>{shown(backup.fail_reason)}</p>
              </div>
            )}
            <Facts
              of={[
                [
                  "Volume",
                  backup.volume.gone ? (
                    <span key="gone">
                      <Id id={backup.volume.id} />, which is gone
                    </span>
                  ) : (
                    <Link key="volume" to="/volumes/$id" params={{ id: backup.volume.id }}>
                      <Foreign text={backup.volume.name} empty={backup.volume.id.slice(0, 8)} />
                    </Link>
                  ),
                ],
                ["As of", <Moment key="as-of" at={backup.data_timestamp} />],
                ["Kind", backup.kind === "full" ? "full" : `incremental, on ${backup.chain_depth} others`],
                ["Machine", backup.machine && <Foreign key="machine" text={backup.machine.name} />],
                ["Encrypted", backup.encrypted ? "yes" : "no"],
                ["Size", <Bytes key="size" bytes={backup.bytes} />],
                ["Stored", <Bytes key="stored" bytes={backup.stored_bytes} />],
                ["Repository", <Foreign key="repository" text={backup.repository} />],
                [
                  "Proven",
                  backup.verified_at ? (
                    <span key="proven">
                      <Age at={backup.verified_at} />, {backup.verified_mode}
                    </span>
                  ) : (
                    "never"
                  ),
                ],
                [
                  "Held until",
                  backup.hold && (
                    <span key="hold">
                      <Moment at={backup.hold.until} /> <Foreign text={backup.hold.reason} empty="" />
                    </span>
                  ),
                ],
                [
                  "Made by",
                  backup.policy_id ? (
                    <Link key="policy" to="/policies/$id" params={{ id: backup.policy_id }}>
                      policy <Id id={backup.policy_id} />
                    </Link>
                  ) : (
                    "somebody's request"
                  ),
                ],
              ]}
            />
            <ChainPanel id={id} />
            <Panel title="Operations" facts="The last twenty.">
              <Loaded query={operations}>
                {({ operations: rows }) => <OperationsTable rows={rows} empty={<p>They are not known any more.</p>} />}
              </Loaded>
            </Panel>
          </>
        )}
      </Loaded>
    </>
  );
}
