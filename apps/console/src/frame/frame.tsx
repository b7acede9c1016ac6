import { useQuery } from "@tanstack/react-query";
import { Outlet } from "@tanstack/react-router";
import type { Session } from "@tephra/wire";
import { Moon, Sun } from "lucide-react";
import { useEffect, useState } from "react";
import { Button } from "react-aria-components/Button";
import { call, Fault, tellSignedOut } from "../data/api.ts";
import { startLive } from "../data/live.ts";
import { client, sessionQuery } from "../data/queries.ts";
import { SessionProvider } from "../data/session.tsx";
import { shortId, shown } from "../parts/format.ts";
import { setPreferences, usePreferences } from "../parts/preferences.ts";
import { FaultNote, Skeleton } from "../parts/states.tsx";
import { ToneIcon } from "../parts/status.tsx";
import { Clock } from "../parts/time.tsx";
import { Toasts } from "../parts/toasts.tsx";
import { Keys } from "./keys.tsx";
import { Away, LiveChip } from "./live-chip.tsx";
import { Rail } from "./rail.tsx";
import { SearchBox } from "./search-box.tsx";
import { SignIn } from "./sign-in.tsx";

function ThemeButton() {
  const { theme } = usePreferences();
  const isDark = theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  const next = isDark ? "light" : "dark";
  return (
    <Button
      className="icon-button"
      aria-label={`Use the ${next} theme`}
      onPress={() => setPreferences({ theme: next })}
    >
      {isDark ? <Sun size={20} aria-hidden="true" /> : <Moon size={20} aria-hidden="true" />}
    </Button>
  );
}

function Who({ session }: { session: Session }) {
  const { mode, user_id, project_id, roles, projects } = session;
  const signOut = () => void call("DELETE /ops/session").finally(() => client.resetQueries());
  const change = (id: string) =>
    void call("POST /ops/session", { body: { other_project_id: id } }).finally(() => client.resetQueries());
  if (mode === "none") return <span className="who tone-warn">no sign-in: this machine only</span>;
  return (
    <span className="who">
      {mode === "keystone" && projects.length > 1 && (
        <select aria-label="Project" value={project_id} onChange={(event) => change(event.target.value)}>
          {projects.map(({ id, name }) => (
            <option key={id} value={id}>
              {shown(name)}
            </option>
          ))}
        </select>
      )}
      <span className="who-name">
        {shown(user_id.length > 24 ? shortId(user_id) : user_id)} · {roles.at(-1) ?? "no role"}
      </span>
      <Button className="button is-quiet" onPress={signOut}>
        Sign out
      </Button>
    </span>
  );
}

/** Signs out a browser that nobody has used for so long. */
function useIdleEnd(minutes: number | undefined): void {
  useEffect(() => {
    if (minutes === undefined) return;
    const end = () => void call("DELETE /ops/session").finally(() => client.resetQueries());
    let timer = setTimeout(end, minutes * 60_000);
    const onUse = () => {
      clearTimeout(timer);
      timer = setTimeout(end, minutes * 60_000);
    };
    const uses = ["pointerdown", "keydown", "wheel"] as const;
    for (const use of uses) document.addEventListener(use, onUse, { passive: true });
    return () => {
      clearTimeout(timer);
      for (const use of uses) document.removeEventListener(use, onUse);
    };
  }, [minutes]);
}

/** Another release answers than the one whose pages these are. */
function NewVersion({ version }: { version: string }) {
  const [first] = useState(version);
  if (version === first) return null;
  return (
    <p className="banner tone-work" role="alert">
      <ToneIcon tone="work" />
      <span>
        Version {shown(version)} is running now: these pages are those of {shown(first)}.
      </span>
      <Button className="button is-quiet" onPress={() => location.reload()}>
        Reload
      </Button>
    </p>
  );
}

/** What is around every page. */
export function Frame() {
  const query = useQuery(sessionQuery);
  const [isSignedOut, setSignedOut] = useState(false);
  useEffect(() => tellSignedOut(() => setSignedOut(true)), []);
  const session = query.data?.session;
  const fault = query.error instanceof Fault ? query.error : null;
  useEffect(() => {
    if (query.dataUpdatedAt > 0) setSignedOut(false);
  }, [query.dataUpdatedAt]);
  useEffect(() => {
    if (isSignedOut) void query.refetch();
  }, [isSignedOut, query.refetch]);
  const caller = session && `${session.user_id} ${session.project_id}`;
  useEffect(() => (caller === undefined ? undefined : startLive()), [caller]);
  useIdleEnd(session && session.mode !== "none" ? session.idle_minutes : undefined);
  if (fault?.status === 401) return <SignIn mode={fault.mode} />;
  if (session === undefined) {
    return (
      <main className="page">
        {query.error ? <FaultNote error={query.error} onRetry={() => void query.refetch()} /> : <Skeleton />}
      </main>
    );
  }
  const may = (rule: string): boolean => session.may.includes(rule);
  return (
    <SessionProvider value={session}>
      <Clock>
        <a className="skip" href="#page">
          To the page
        </a>
        <header className="bar">
          <span className="brand">Tephra</span>
          <SearchBox />
          <LiveChip />
          <ThemeButton />
          <Who session={session} />
        </header>
        <Rail may={may} />
        <main className="page" id="page" tabIndex={-1}>
          <Away />
          <NewVersion version={session.server.version} />
          <Outlet />
        </main>
        <Toasts />
        <Keys />
      </Clock>
    </SessionProvider>
  );
}
