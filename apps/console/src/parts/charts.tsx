import { queryOptions, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { Samples } from "@tephra/wire";
import { useState } from "react";
import { Button } from "react-aria-components/Button";
import { call } from "../data/api.ts";
import { freshness } from "../data/queries.ts";
import { useParameter } from "./address.ts";
import { Canvas, type Drawing } from "./canvas.tsx";
import { bytesText, countText, durationText, shown, timeText } from "./format.ts";
import { Panel } from "./panel.tsx";
import { usePreferences } from "./preferences.ts";
import { Loaded } from "./states.tsx";
import { DataTable } from "./table.tsx";
import { type Tone, toneOf } from "./words.ts";

/** How far back one looks, in seconds, and how many bars that has at most: hours, four hours, days. */
const ranges = {
  "24h": { text: "24 h", seconds: 86_400, bars: 26 },
  "7d": { text: "7 d", seconds: 7 * 86_400, bars: 44 },
  "90d": { text: "90 d", seconds: 90 * 86_400, bars: 92 },
} as const;
type Range = keyof typeof ranges;
const points = 300;

/** The range that the query string names. */
function useRange(): Range {
  const asked = useParameter("range");
  return asked !== undefined && Object.hasOwn(ranges, asked) ? (asked as Range) : "24h";
}

function RangeLinks() {
  const range = useRange();
  return Object.entries(ranges).map(([name, { text }]) => (
    <Link
      key={name}
      className="button is-quiet"
      to="."
      search={((now: object) => ({ ...now, range: name === "24h" ? undefined : name })) as never}
      aria-current={range === name ? "true" : undefined}
      resetScroll={false}
    >
      {text}
    </Link>
  ));
}

/** Samples of a range until now, asked for once a minute. */
const samplesOf = (series: string, range: Range, steps: number) =>
  queryOptions({
    queryKey: ["GET /ops/samples", series, range, steps],
    queryFn: ({ signal }) => {
      const from = new Date(Date.now() - ranges[range].seconds * 1_000).toISOString();
      return call("GET /ops/samples", { query: { series, from, points: steps }, signal });
    },
    ...freshness({ on: [], everyMs: 60_000 }),
  });

interface Chart {
  title: string;
  /** By their names in the answer. */
  series: readonly { key: string; name: string; tone: Tone }[];
  kind: Drawing["kind"];
  isStacked?: boolean;
  /** Looked at less often than there are steps: what lies between is drawn. */
  isGauge?: boolean;
  unit: (value: number) => string;
}

const rate = (value: number): string => `${bytesText(value)}/s`;

/** What a chart shows, in one sentence for those who do not see it. */
function sentenceOf({ title, unit }: Chart, lines: Drawing["lines"]): string {
  const parts = lines.map(({ name, values }) => {
    const known = values.filter((value) => value !== null);
    const last = known.at(-1);
    return last === undefined ? `${name} unknown` : `${name} ${unit(last)}, at most ${unit(Math.max(...known))}`;
  });
  return `${title}. Now ${parts.join("; ")}.`;
}

function Shown({ chart, samples }: { chart: Chart; samples: Samples }) {
  const [isTable, setTable] = useState(false);
  const { zone } = usePreferences();
  const { t, series } = samples;
  const lines = chart.series.map(({ key, name, tone }) => ({ name, tone, values: series[key] ?? [] }));
  const rows = t.flatMap((at, index) => {
    const values = lines.map(({ values: of }) => of[index] ?? null);
    return values.every((value) => value === null) ? [] : [{ at, values }];
  });
  if (rows.length < 2) return <p className="second">Begins in a minute.</p>;
  return (
    <>
      {isTable ? (
        <div className="chart-table">
          <DataTable
            caption={chart.title}
            columns={[
              { name: "From", cell: ({ at }) => timeText(at, zone) },
              ...lines.map(({ name }, index) => ({
                name: shown(name),
                cell: ({ values }: (typeof rows)[number]) => {
                  const value = values[index] ?? null;
                  return value === null ? "—" : chart.unit(value);
                },
                isNumber: true,
              })),
            ]}
            rows={rows.toReversed()}
            keyOf={({ at }) => at}
            empty={null}
          />
        </div>
      ) : (
        <div role="img" aria-label={shown(sentenceOf(chart, lines))}>
          <Canvas
            samples={samples}
            lines={lines}
            kind={chart.kind}
            unit={chart.unit}
            isStacked={chart.isStacked ?? false}
            isGauge={chart.isGauge ?? false}
          />
        </div>
      )}
      <div className="chart-foot">
        {lines.map(({ name, tone }) => (
          <span key={name} className={`chart-key tone-${tone}`}>
            {shown(name)}
          </span>
        ))}
        <Button
          className="button is-quiet"
          onPress={() => setTable(!isTable)}
          aria-label={`${chart.title} as a ${isTable ? "chart" : "table"}`}
        >
          {isTable ? "Chart" : "Table"}
        </Button>
      </div>
    </>
  );
}

function ChartOf({ chart, steps = points }: { chart: Chart; steps?: number }) {
  // Of each repository one series: they are asked for by one name.
  const names = [...new Set(chart.series.map(({ key }) => key.split(":")[0]))].join(",");
  const query = useQuery(samplesOf(names, useRange(), steps));
  return (
    <figure className="chart">
      <figcaption>{chart.title}</figcaption>
      <Loaded query={query} lines={6}>
        {(samples) => <Shown chart={chart} samples={samples} />}
      </Loaded>
    </figure>
  );
}

const moved: Chart = {
  title: "Read and stored",
  series: [
    { key: "bytes_in", name: "read", tone: "work" },
    { key: "bytes_out", name: "stored", tone: "restore" },
  ],
  kind: "area",
  unit: rate,
};
const oldest: Chart = {
  title: "Oldest that waits",
  series: [{ key: "queue_oldest", name: "seconds", tone: "risk" }],
  kind: "line",
  unit: durationText,
};
const ended: Chart = {
  title: "Operations that ended",
  series: [
    { key: "ends_succeeded", name: "succeeded", tone: "ok" },
    { key: "ends_failed", name: "failed", tone: "bad" },
    { key: "ends_cancelled", name: "cancelled", tone: "gone" },
  ],
  kind: "bars",
  isStacked: true,
  unit: countText,
};
const volumes: Chart = {
  title: "Volumes",
  series: ["protected", "late", "at risk", "never"].map((state) => {
    return { key: `volumes_${state.replace(" ", "_")}`, name: state, tone: toneOf(state) };
  }),
  kind: "area",
  isStacked: true,
  isGauge: true,
  unit: countText,
};

/** What moved, waited and ended, and how many volumes were protected. */
export function ActivityPanel() {
  const { bars, text } = ranges[useRange()];
  return (
    <Panel title={`Last ${text}`} facts={<RangeLinks />}>
      <div className="charts">
        <ChartOf chart={moved} />
        <ChartOf chart={oldest} />
        <ChartOf chart={ended} steps={bars} />
        <ChartOf chart={volumes} />
      </div>
    </Panel>
  );
}

const tones: readonly Tone[] = ["work", "restore", "proof", "warn", "risk", "ok"];

/** What was stored in each repository. */
export function StoredPanel({ repositories }: { repositories: readonly string[] }) {
  const stored: Chart = {
    title: "Stored",
    series: repositories.map((name, at) => ({ key: `stored:${name}`, name, tone: tones[at % tones.length] ?? "work" })),
    kind: "line",
    isGauge: true,
    unit: bytesText,
  };
  return (
    <Panel title={`Last ${ranges[useRange()].text}`} facts={<RangeLinks />}>
      <ChartOf chart={stored} />
    </Panel>
  );
}
