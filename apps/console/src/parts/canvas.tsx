import type { Samples } from "@tephra/wire";
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { timeText, type Zone } from "./format.ts";
import { usePreferences } from "./preferences.ts";
import type { Tone } from "./words.ts";

type Values = readonly (number | null)[];

export interface Drawing {
  samples: Samples;
  lines: readonly { name: string; tone: Tone; values: Values }[];
  unit: (value: number) => string;
  kind: "area" | "line" | "bars";
  /** Each lies on those before it. */
  isStacked: boolean;
  /** What lies between two values is drawn. */
  isGauge: boolean;
}

const height = 180;
const widthMin = 160;

/** Each as the sum of itself and those before it. */
function piled(all: readonly Values[]): Values[] {
  const sums: number[] = [];
  return all.map((values) =>
    values.map((value, at) => {
      if (value === null) return null;
      sums[at] = (sums[at] ?? 0) + value;
      return sums[at] ?? 0;
    }),
  );
}

/** A colour of the theme that holds now: a canvas knows no custom properties. */
function colourOf(element: HTMLElement, name: string): string {
  element.style.color = `var(--${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

/** The last step apart, where it has not ended: it is drawn with dashes. */
function parted(values: Values, isOpen: boolean): [whole: Values, open: Values] {
  const last = values.length - 1;
  if (!isOpen) return [values, values.map(() => null)];
  return [
    values.map((value, at) => (at === last ? null : value)),
    values.map((value, at) => (at >= last - 1 ? value : null)),
  ];
}

/** Days at midnight and where nothing lies between, else hours. */
const labelsOf =
  (zone: Zone) =>
  (_: uPlot, splits: number[], __: number, ___: number, stepSeconds: number): string[] =>
    splits.map((seconds) => {
      const text = timeText(new Date(seconds * 1_000).toISOString(), zone);
      const clock = text.slice(11, 16);
      return stepSeconds >= 86_400 || clock === "00:00" ? text.slice(5, 10) : clock;
    });

function draw(element: HTMLElement, { samples, lines, unit, kind, isStacked, isGauge }: Drawing, zone: Zone): uPlot {
  const { t, step_seconds: stepSeconds, as_of } = samples;
  const starts = t.map((text) => Date.parse(text) / 1_000);
  const isOpen = (starts.at(-1) ?? 0) + stepSeconds > Date.parse(as_of) / 1_000;
  const raw = lines.map(({ values }) => values);
  const heights = isStacked ? piled(raw) : raw;
  const bars = kind === "bars" ? uPlot.paths.bars?.({ size: [0.7, 40], align: 1 }) : undefined;
  const layers = lines.map(({ name, tone }, at) => {
    const colour = colourOf(element, `${tone}-fill`);
    const [whole, open] = parted(heights[at] ?? [], isOpen);
    const common = { label: name, stroke: colour, width: 1.5, spanGaps: isGauge, ...(bars && { paths: bars }) };
    const points = { show: false };
    return [
      { data: whole, of: { ...common, points, ...(kind === "line" ? {} : { fill: colour }) } },
      { data: open, of: { ...common, points, dash: [4, 4] } },
    ];
  });
  // The last of a pile is the highest: it is drawn first, and those that lie below over it.
  const ordered = (isStacked ? layers.toReversed() : layers).flat();
  const [text, hair] = [colourOf(element, "second"), colourOf(element, "hair")];
  const axis = { stroke: text, grid: { stroke: hair, width: 1 }, ticks: { stroke: hair, width: 1 } };
  const font = '12px "IBM Plex Sans Variable"';
  const timeOf = (seconds: number): Date => new Date(seconds * 1_000);
  return new uPlot(
    {
      width: Math.max(widthMin, element.clientWidth),
      height,
      legend: { show: false },
      // The pointer is at the same moment in all charts of a page.
      cursor: { sync: { key: "charts" }, drag: { x: false, y: false }, y: false, points: { show: false } },
      tzDate: (seconds) => (zone === "utc" ? uPlot.tzDate(timeOf(seconds), "Etc/UTC") : timeOf(seconds)),
      scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
      axes: [
        { ...axis, font, space: 64, values: labelsOf(zone) },
        { ...axis, font, size: 80, values: (_, splits) => splits.map(unit) },
      ],
      series: [{}, ...ordered.map(({ of }) => of)],
    },
    [starts, ...ordered.map(({ data }) => data as (number | null)[])],
    element,
  );
}

/** A chart, as wide as there is room. */
export function Canvas(drawing: Drawing) {
  const place = useRef<HTMLDivElement>(null);
  const { theme, zone } = usePreferences();
  // biome-ignore lint/correctness/useExhaustiveDependencies: what is drawn changes with the samples; another theme has other colours
  useEffect(() => {
    const element = place.current;
    if (element === null) return;
    let plot = draw(element, drawing, zone);
    const redraw = (): void => {
      plot.destroy();
      plot = draw(element, drawing, zone);
    };
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw);
    const sizes = new ResizeObserver(() => plot.setSize({ width: Math.max(widthMin, element.clientWidth), height }));
    sizes.observe(element);
    return () => {
      dark.removeEventListener("change", redraw);
      sizes.disconnect();
      plot.destroy();
    };
  }, [drawing.samples, theme, zone]);
  return <div ref={place} className="chart-canvas" />;
}
