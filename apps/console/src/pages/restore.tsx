import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import type { BackupHealth } from "@tephra/wire";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { ask } from "../data/api.ts";
import { backupPath, type CinderBackup, utc } from "../data/cinder.ts";
import { path, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { useId } from "../parts/address.ts";
import { chainQuery } from "../parts/chain.tsx";
import { quoted, shown } from "../parts/format.ts";
import { PageHead, Panel } from "../parts/panel.tsx";
import { FaultNote, Loaded } from "../parts/states.tsx";
import { ToneIcon } from "../parts/status.tsx";
import { Bytes, Command, Foreign } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";
import { tell } from "../parts/toasts.tsx";

interface Check {
  name: string;
  tone: "ok" | "warn" | "bad";
  text: React.ReactNode;
}

/** What is known of whether a restore works, before anything starts. */
function checksOf(backup: BackupHealth, members: readonly BackupHealth[]): Check[] {
  const damaged = members.filter(({ damage }) => damage !== null);
  const stored = members.reduce((sum, { stored_bytes }) => sum + (stored_bytes ?? 0), 0);
  return [
    backup.status === "available"
      ? { name: "status", tone: "ok", text: "The backup is available." }
      : { name: "status", tone: "bad", text: `The backup is ${backup.status}: only an available one can be restored.` },
    damaged.length === 0
      ? { name: "damage", tone: "ok", text: `None of its ${members.length} members is known to be damaged.` }
      : {
          name: "damage",
          tone: "bad",
          text: `${damaged.length} of its ${members.length} members are damaged: ${damaged[0]?.damage}`,
        },
    backup.verified_at
      ? {
          name: "proof",
          tone: "ok",
          text: (
            <>
              It was proven <Age at={backup.verified_at} /> ({backup.verified_mode}).
            </>
          ),
        }
      : { name: "proof", tone: "warn", text: "Nobody has proven yet that it can be restored: a verification would." },
    {
      name: "size",
      tone: "ok",
      text: (
        <>
          <Bytes bytes={backup.bytes} /> are written, at most <Bytes bytes={stored} /> read.
        </>
      ),
    },
  ];
}

function Verdict({ id }: { id: string }) {
  const query = useQuery(chainQuery(id));
  return (
    <Panel title="Would it work?">
      <Loaded query={query}>
        {({ members }) => {
          const [backup] = members;
          return (
            <ul className="checks">
              {(backup ? checksOf(backup, members) : []).map(({ name, tone, text }) => (
                <li key={name}>
                  <ToneIcon tone={tone} />
                  <span>
                    <span className="away">{tone === "ok" ? "Yes: " : tone === "warn" ? "Perhaps: " : "No: "}</span>
                    {typeof text === "string" ? shown(text) : text}
                  </span>
                </li>
              ))}
            </ul>
          );
        }}
      </Loaded>
    </Panel>
  );
}

const nameOfCopy = (backup: CinderBackup): string => `restore_${backup.name ?? backup.id.slice(0, 8)}`.slice(0, 255);

function Form({ backup }: { backup: CinderBackup }) {
  const { project_id } = useSession();
  const navigate = useNavigate();
  const [isOver, setOver] = useState(false);
  const [name, setName] = useState(nameOfCopy(backup));
  const [target, setTarget] = useState("");
  const [typed, setTyped] = useState("");
  const volumes = useQuery({ ...route("GET /ops/volumes", { query: { limit: 1000 } }, false), enabled: isOver });
  const options = volumes.data?.volumes ?? [];
  const over = options.find(({ id }) => id === target);
  const overName = over?.name ?? over?.id ?? "";
  const isReady = isOver ? over !== undefined && typed === overName : name.trim() !== "";
  const restore = useMutation({
    mutationFn: () =>
      ask("POST", `${backupPath(project_id, backup.id)}/restore`, {
        restore: isOver ? { volume_id: target } : { name },
      }) as Promise<{ restore: { volume_id: string } }>,
    onSuccess: async ({ restore: { volume_id } }) => {
      tell("The restore was asked for.");
      await navigate({ to: "/volumes/$id", params: { id: volume_id } });
    },
  });
  return (
    <Panel title="Where to">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (isReady) restore.mutate();
        }}
      >
        <label className="check">
          <input type="radio" name="target" checked={!isOver} onChange={() => setOver(false)} /> to a new volume
        </label>
        {!isOver && (
          <label className="field">
            Name
            <input value={name} maxLength={255} onChange={(event) => setName(event.target.value)} />
          </label>
        )}
        <label className="check">
          <input type="radio" name="target" checked={isOver} onChange={() => setOver(true)} /> over a volume
        </label>
        {isOver && (
          <>
            <label className="field">
              Volume
              <select
                value={target}
                onChange={(event) => {
                  setTarget(event.target.value);
                  setTyped("");
                }}
              >
                <option value="">—</option>
                {options.map(({ id, name: text }) => (
                  <option key={id} value={id}>
                    {shown(text ?? id)}
                  </option>
                ))}
              </select>
            </label>
            {over && (
              <>
                <p className="fault">
                  What was written to it since <Moment at={utc(backup.data_timestamp ?? backup.created_at)} /> is lost.
                  Its newest good backup: <Age at={over.protection.last_good?.at} />.
                </p>
                <label className="field">
                  <span>
                    Type <bdi>{shown(overName)}</bdi>
                  </span>
                  <input value={typed} onChange={(event) => setTyped(event.target.value)} autoComplete="off" />
                </label>
              </>
            )}
          </>
        )}
        {restore.error && <FaultNote error={restore.error} />}
        <p>
          <Command
            text={`tephra backup restore ${quoted(backup.id)}${isOver ? ` --volume ${quoted(target || "VOLUME")}` : ` --name ${quoted(name)}`} --wait`}
          />
        </p>
        <Button type="submit" className="button is-primary" isDisabled={!isReady || restore.isPending}>
          Restore
        </Button>
      </form>
    </Panel>
  );
}

/** A restore opens with whether it would work. */
export function RestorePage() {
  const id = useId();
  const may = useMay();
  const { project_id } = useSession();
  const details = useQuery(path<{ backup: CinderBackup }>(backupPath(project_id, id), false));
  const backup = details.data?.backup;
  return (
    <>
      <PageHead
        title="Restore"
        facts={
          <>
            <Link to="/backups/$id" params={{ id }}>
              <Foreign text={backup?.name} empty={id.slice(0, 8)} />
            </Link>
            {backup && (
              <>
                {" as of "}
                <Moment at={utc(backup.data_timestamp ?? backup.created_at)} />
              </>
            )}
          </>
        }
      />
      <Loaded query={details}>
        {(data) => (
          <>
            <Verdict id={id} />
            {may("backup:restore") && <Form backup={data.backup} />}
          </>
        )}
      </Loaded>
    </>
  );
}
