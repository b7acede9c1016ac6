import { useNavigate } from "@tanstack/react-router";
import { useCallback } from "react";
import { getPreferences } from "./preferences.ts";

export interface Column<Row> {
  name: string;
  cell: (row: Row) => React.ReactNode;
  isNumber?: boolean;
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
      } else if (letters && event.key === "c" && row.dataset["id"]) {
        void navigator.clipboard.writeText(row.dataset["id"]).catch(() => {});
      }
    },
    [navigate],
  );
  if (rows.length === 0) return <div className="empty">{empty}</div>;
  return (
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
        {rows.map((row) => (
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
  );
}
