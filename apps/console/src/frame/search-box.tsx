import { useNavigate } from "@tanstack/react-router";
import { Search } from "lucide-react";
import { useState } from "react";
import { call } from "../data/api.ts";
import { tell } from "../parts/toasts.tsx";
import { searchId } from "./keys.tsx";

/** Where the resource of an id is shown; null: there is none that the caller may see. */
async function placeOf(id: string): Promise<string | null> {
  const found = await Promise.allSettled([
    call("GET /ops/operations/:id", { params: { id } }).then(() => `/operations/${id}`),
    call("GET /ops/volumes/:id", { params: { id } }).then(() => `/volumes/${id}`),
    call("GET /ops/backups/:id", { params: { id } }).then(() => `/backups/${id}`),
    call("GET /ops/policies/:id", { params: { id } }).then(() => `/policies/${id}`),
  ]);
  return found.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []))[0] ?? null;
}

/** Finds what has an id. */
export function SearchBox() {
  const [text, setText] = useState("");
  const navigate = useNavigate();
  const search = async () => {
    const id = text.trim();
    if (id === "") return;
    const place = await placeOf(id);
    if (place === null) return tell(`Nothing has the id ${id}, or it is not yours.`, { isFault: true });
    setText("");
    await navigate({ to: place });
  };
  return (
    <search className="search">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void search();
        }}
      >
        <Search size={16} aria-hidden="true" />
        <input
          id={searchId}
          type="search"
          aria-label="Search by id"
          placeholder="Id of a volume, backup, operation, policy  ( / )"
          autoComplete="off"
          spellCheck={false}
          value={text}
          onChange={(event) => setText(event.target.value)}
          onKeyDown={(event) => event.key === "Escape" && event.currentTarget.blur()}
        />
      </form>
    </search>
  );
}
