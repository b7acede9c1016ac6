import { Link } from "@tanstack/react-router";
import { type Operation, queuePlaces } from "@tephra/wire";
import { countText, leftText, percent, rateText } from "./format.ts";
import { Meter } from "./panel.tsx";
import { Status } from "./status.tsx";
import { type Column, DataTable } from "./table.tsx";
import { Bytes, Foreign, Id } from "./texts.tsx";
import { Age } from "./time.tsx";

const isEnded = ({ state }: Operation): boolean => !["queued", "running"].includes(state);

/** How far an operation is, of its bytes, or of its tasks where it moves none. */
export function progressOf(row: Operation): number {
  const [done, total] = row.bytes_total > 0 ? [row.bytes_done, row.bytes_total] : [row.tasks_done, row.tasks_total];
  return percent(done, total, row.state === "succeeded");
}

function placeText(position: number | null): string {
  if (position === null) return "waits";
  return position > queuePlaces ? `over ${countText(queuePlaces)} ahead` : `${countText(position)}. in the queue`;
}

export function OperationMeter({ row }: { row: Operation }) {
  if (row.state === "queued") {
    return <span>{placeText(row.queue_position)}</span>;
  }
  if (isEnded(row) && row.state !== "succeeded") return <span className="second">—</span>;
  const tone = row.state === "succeeded" ? "ok" : row.kind.includes("restore") ? "restore" : "work";
  return <Meter value={progressOf(row)} label={`Progress of ${row.kind}`} tone={tone} />;
}

const columns: readonly Column<Operation>[] = [
  { name: "State", cell: ({ state }) => <Status state={state} /> },
  {
    name: "Kind",
    cell: ({ id, kind }) => (
      <Link to="/operations/$id" params={{ id }}>
        {kind}
      </Link>
    ),
  },
  { name: "Progress", cell: (row) => <OperationMeter row={row} /> },
  { name: "Phase", cell: ({ phase }) => phase ?? "—" },
  { name: "Rate", cell: (row) => (isEnded(row) ? "—" : rateText(row.rate_bytes_per_second)), isNumber: true },
  { name: "Left", cell: (row) => (isEnded(row) ? "—" : leftText(row.seconds_left) || "—"), isNumber: true },
  { name: "Bytes", cell: ({ bytes_total }) => <Bytes bytes={bytes_total} />, isNumber: true },
  {
    name: "Volume",
    cell: ({ volume_id, volume_name }) =>
      volume_id === null ? (
        "—"
      ) : (
        <Link to="/volumes/$id" params={{ id: volume_id }}>
          {volume_name === null ? <Id id={volume_id} /> : <Foreign text={volume_name} />}
        </Link>
      ),
  },
  { name: "Begun", cell: ({ created_at }) => <Age at={created_at} />, isNumber: true },
];

export function OperationsTable({ rows, empty }: { rows: readonly Operation[]; empty: React.ReactNode }) {
  return (
    <DataTable
      caption="Operations"
      columns={columns}
      rows={rows}
      keyOf={({ id }) => id}
      hrefOf={({ id }) => `/operations/${id}`}
      empty={empty}
    />
  );
}
