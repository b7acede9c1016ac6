import { Link, useNavigate } from "@tanstack/react-router";
import type { AnswerOf } from "@tephra/wire";
import { Search } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import { call } from "../data/api.ts";
import { Foreign, Id } from "../parts/texts.tsx";
import { tell } from "../parts/toasts.tsx";
import { searchId } from "./keys.tsx";

type Hit = AnswerOf<"GET /ops/search">["hits"][number];

/** The pages of kinds of things; snapshots have none, machines share one. */
const places: Readonly<Partial<Record<Hit["type"], (id: string) => string>>> = {
  volume: (id) => `/volumes/${id}`,
  backup: (id) => `/backups/${id}`,
  operation: (id) => `/operations/${id}`,
  policy: (id) => `/policies/${id}`,
  machine: () => "/machines",
};
const charactersMin = 3;

/** Finds what an id, a name or a request begins with: goes to the only hit, or offers all of them. */
export function SearchBox() {
  const [text, setText] = useState("");
  const [hits, setHits] = useState<readonly Hit[]>([]);
  const list = useRef<HTMLUListElement>(null);
  const navigate = useNavigate();
  const close = (): void => setHits([]);
  useEffect(() => {
    if (hits.length > 0) list.current?.querySelector("a")?.focus();
  }, [hits]);
  const search = async (): Promise<void> => {
    const q = text.trim();
    if (q === "") return;
    if (q.length < charactersMin) return tell(`Type ${charactersMin} characters or more.`, { isFault: true });
    const { hits: found } = await call("GET /ops/search", { query: { q } });
    const shown = found.filter(({ type }) => places[type] !== undefined);
    const [first] = shown;
    if (first === undefined) return tell(`Nothing begins with ${q}, or it is not yours.`, { isFault: true });
    if (shown.length > 1) return setHits(shown);
    setText("");
    close();
    await navigate({ to: places[first.type]?.(first.id) ?? "/" });
  };
  return (
    <search className="search">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          search().catch((error: Error) => tell(error.message, { isFault: true }));
        }}
      >
        <Search size={16} aria-hidden="true" />
        <input
          id={searchId}
          type="search"
          aria-label="Search by id, name or request"
          placeholder="Id, name, req-…  ( / )"
          autoComplete="off"
          spellCheck={false}
          value={text}
          onChange={(event) => {
            setText(event.target.value);
            close();
          }}
          onKeyDown={(event) => event.key === "Escape" && event.currentTarget.blur()}
        />
      </form>
      {hits.length > 0 && (
        <ul
          ref={list}
          className="hits"
          aria-label="What was found"
          onKeyDown={(event) => {
            if (event.key === "Escape") {
              close();
              document.getElementById(searchId)?.focus();
              return;
            }
            const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
            const links = [...event.currentTarget.querySelectorAll("a")];
            const next = links[links.indexOf(event.target as HTMLAnchorElement) + step];
            if (step === 0 || next === undefined) return;
            next.focus();
            event.preventDefault();
          }}
        >
          {hits.map(({ type, id, name, status }) => (
            <li key={id}>
              <Link to={places[type]?.(id) ?? "/"} onClick={close}>
                <span>{type}</span> <Foreign text={name} empty="no name" /> <Id id={id} />{" "}
                <span className="second">{status}</span>
              </Link>
            </li>
          ))}
        </ul>
      )}
    </search>
  );
}
