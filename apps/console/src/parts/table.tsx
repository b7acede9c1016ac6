import { useLocation, useNavigate } from "@tanstack/react-router";
import { useCallback, useContext, useRef, useState } from "react";
import { getPreferences } from "./preferences.ts";
import { OfBefore } from "./states.tsx";

export interface Column<Row> {
  name: string;
  cell: (row: Row) => React.ReactNode;
  isNumber?: boolean;
}

/**
 * Rows stand still while somebody points at them: their cells change, but none moves, comes or goes. `changed`: how many would; `show` lets them.
 * Those of another page or filter, which the address names, are others, and are shown.
 */
function useHeldRows<Row>(rows: readonly Row[], keyOf: (row: Row) => string) {
  const question = useLocation({ select: ({ href }) => href });
  const isOfBefore = useContext(OfBefore);
  const [pointedAt, setPointedAt] = useState<{ question: string; rows: readonly Row[] } | null>(null);
  const held = pointedAt?.question === question ? pointedAt.rows : null;
  const hold = (): void => setPointedAt({ question, rows });
  const now = new Map(rows.map((row) => [keyOf(row), row]));
  const keys = held?.map(keyOf) ?? [];
  const known = new Set(keys);
  const staying = keys.filter((key) => now.has(key));
  const inNewOrder = rows.map(keyOf).filter((key) => known.has(key));
  const moved = staying.filter((key, at) => key !== inNewOrder[at]).length;
  return {
    shownRows: held?.map((row) => now.get(keyOf(row)) ?? row) ?? rows,
    changed: held === null ? 0 : moved + (keys.length - staying.length) + (rows.length - inNewOrder.length),
    show: hold,
    // No event tells that the pointer is there when its table has been given other rows, but for its next move.
    onPointerMove: ({ pointerType }: React.PointerEvent) => {
      if (pointerType === "mouse" && held === null && !isOfBefore) hold();
    },
    onPointerLeave: () => setPointedAt(null),
  };
}

const boxOf = (row: Element): HTMLInputElement | null => row.querySelector("input[type=checkbox]");

/** Chooses a row, or no longer; `from`: the id of another, to which all between are chosen, too. */
function choose(row: HTMLElement, from: string | null): void {
  const rows = [...(row.parentElement?.children ?? [])];
  const [at, begin] = [rows.indexOf(row), rows.findIndex((one) => (one as HTMLElement).dataset["id"] === from)];
  if (from === null || begin < 0) {
    boxOf(row)?.click();
    return;
  }
  for (const one of rows.slice(Math.min(at, begin), Math.max(at, begin) + 1)) {
    const box = boxOf(one);
    if (box?.checked === false) box.click();
  }
}

/**
 * A native table; below 640 px each row is a card. `hrefOf`: where Enter on a row leads; the first column should have the same as a link.
 */
export function DataTable<Row>({
  caption,
  columns,
  rows,
  keyOf,
  hrefOf,
  empty,
}: {
  caption: string;
  columns: readonly Column<Row>[];
  rows: readonly Row[];
  keyOf: (row: Row) => string;
  hrefOf?: (row: Row) => string | null;
  empty: React.ReactNode;
}) {
  const navigate = useNavigate();
  const lastChosen = useRef<string | null>(null);
  const onKeyDown = useCallback(
    (event: React.KeyboardEvent<HTMLTableSectionElement>) => {
      const row = (event.target as HTMLElement).closest("tr");
      if (row === null || event.ctrlKey || event.metaKey || event.altKey) return;
      const letters = getPreferences().letters;
      const isDown = event.key === "ArrowDown" || (letters && event.key === "j");
      const isUp = event.key === "ArrowUp" || (letters && event.key === "k");
      const next = isDown ? row.nextElementSibling : isUp ? row.previousElementSibling : null;
      if (next instanceof HTMLElement) {
        next.focus();
        event.preventDefault();
      } else if (event.key === "Enter" && event.target === row && row.dataset["href"]) {
        void navigate({ to: row.dataset["href"] });
      } else if (letters && event.key.toLowerCase() === "x") {
        choose(row, event.shiftKey ? lastChosen.current : null);
        lastChosen.current = row.dataset["id"] ?? null;
      } else if (letters && event.key === ".") {
        row.querySelector<HTMLElement>("button:not([disabled]), select:not([disabled])")?.focus();
      } else if (letters && event.key === "c" && row.dataset["id"]) {
        void navigator.clipboard.writeText(row.dataset["id"]).catch(() => {});
      }
    },
    [navigate],
  );
  const { shownRows, changed, show, ...pointing } = useHeldRows(rows, keyOf);
  if (shownRows.length === 0) return <div className="empty">{empty}</div>;
  return (
    <div className="table-frame" {...pointing}>
      {changed > 0 && (
        <button type="button" className="pill" onClick={show}>
          {changed} changed · Show
        </button>
      )}
      <table className="table">
        <caption className="away">{caption}</caption>
        <thead>
          <tr>
            {columns.map(({ name, isNumber }) => (
              <th key={name} scope="col" className={isNumber ? "is-number" : undefined}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody onKeyDown={onKeyDown}>
          {shownRows.map((row) => (
            <tr key={keyOf(row)} tabIndex={0} data-id={keyOf(row)} data-href={hrefOf?.(row) ?? undefined}>
              {columns.map(({ name, cell, isNumber }) => (
                <td key={name} data-label={name} className={isNumber ? "is-number" : undefined}>
                  {cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
