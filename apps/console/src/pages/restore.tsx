import { type UseQueryResult, useMutation, useQuery } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import type { RestoreCheck } from "@tephra/wire";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { ask } from "../data/api.ts";
import { backupPath, type CinderBackup, utc } from "../data/cinder.ts";
import { path, route } from "../data/queries.ts";
import { useMay, useSession } from "../data/session.tsx";
import { useId } from "../parts/address.ts";
import { countText, durationText, quoted, shown } from "../parts/format.ts";
import { PageHead, Panel } from "../parts/panel.tsx";
import { FaultNote, Loaded } from "../parts/states.tsx";
import { Status, ToneIcon } from "../parts/status.tsx";
import { Bytes, Command, Foreign } from "../parts/texts.tsx";
import { Age, Moment } from "../parts/time.tsx";
import { tell } from "../parts/toasts.tsx";

const words = { yes: "Yes", perhaps: "Perhaps", no: "No" } as const;
const tones = { yes: "ok", perhaps: "warn", no: "bad" } as const;

type Word = keyof typeof words;
const wordOf = (ok: boolean | null): Word => (ok === null ? "perhaps" : ok ? "yes" : "no");

/** `target`: the volume that is written over; null: a new one. */
const checkQuery = (id: string, target: string | null) =>
  route("GET /ops/backups/:id/restore-check", { params: { id }, query: { volume_id: target } });

function timeOf({ estimate, ahead }: RestoreCheck): string {
  const { seconds, basis } = estimate;
  const time =
    seconds === null ? `how long it takes is not known: ${basis}` : `in about ${durationText(seconds)} (${basis})`;
  return ahead === 0 ? time : `${time}; ${countText(ahead)} tasks of the project go before it`;
}

/** Whether it would work, before anything starts. */
function Verdict({ query }: { query: UseQueryResult<RestoreCheck> }) {
  return (
    <Panel title="Would it work?">
      <Loaded query={query}>
        {(told) => (
          <>
            <p role="status">
              <Status state={words[told.verdict]} tone={tones[told.verdict]} />
              {told.verdict !== "no" && <>, {shown(timeOf(told))}</>}. <Bytes bytes={told.estimate.bytes} /> are
              written.
            </p>
            <ul className="checks">
              {told.checks.map(({ code, ok, text }) => (
                <li key={code}>
                  <ToneIcon tone={tones[wordOf(ok)]} />
                  <span>
                    <span className="away">{words[wordOf(ok)]}: </span>
                    {shown(text)}
                  </span>
                </li>
              ))}
            </ul>
          </>
        )}
      </Loaded>
    </Panel>
  );
}

const nameOfCopy = (backup: CinderBackup): string => `restore_${backup.name ?? backup.id.slice(0, 8)}`.slice(0, 255);

/** Where to. `target` as in checkQuery. */
function Form({
  backup,
  isHopeless,
  onTarget,
}: {
  backup: CinderBackup;
  isHopeless: boolean;
  onTarget: (target: string | null) => void;
}) {
  const { project_id } = useSession();
  const navigate = useNavigate();
  const [isOver, setOver] = useState(false);
  const [name, setName] = useState(nameOfCopy(backup));
  const [target, setTarget] = useState("");
  const [typed, setTyped] = useState("");
  const volumes = useQuery({
    ...route("GET /ops/volumes", { query: { limit: 1000 } }, { on: ["volume"] }),
    enabled: isOver,
  });
  const options = volumes.data?.volumes ?? [];
  const over = options.find(({ id }) => id === target);
  const overName = over?.name ?? over?.id ?? "";
  const isReady = isOver ? over !== undefined && typed === overName : name.trim() !== "";
  const choose = (over: boolean, volume: string) => {
    setOver(over);
    setTarget(volume);
    setTyped("");
    onTarget(volume === "" ? null : volume);
  };
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
          if (isReady && !isHopeless) restore.mutate();
        }}
      >
        <label className="check">
          <input type="radio" name="target" checked={!isOver} onChange={() => choose(false, "")} /> to a new volume
        </label>
        {!isOver && (
          <label className="field">
            Name
            <input value={name} maxLength={255} onChange={(event) => setName(event.target.value)} />
          </label>
        )}
        <label className="check">
          <input type="radio" name="target" checked={isOver} onChange={() => choose(true, "")} /> over a volume
        </label>
        {isOver && (
          <>
            <label className="field">
              Volume
              <select value={target} onChange={(event) => choose(true, event.target.value)}>
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
        <Button type="submit" className="button is-primary" isDisabled={!isReady || isHopeless || restore.isPending}>
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
  const [target, setTarget] = useState<string | null>(null);
  const check = useQuery(checkQuery(id, target));
  const details = useQuery(path<{ backup: CinderBackup }>(backupPath(project_id, id), { on: [] }));
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
            <Verdict query={check} />
            {may("backup:restore") && (
              <Form backup={data.backup} isHopeless={check.data?.verdict === "no"} onTarget={setTarget} />
            )}
          </>
        )}
      </Loaded>
    </>
  );
}
