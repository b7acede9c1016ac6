import { readSamples, type SampleStep } from "@tephra/control";
import { type AnswerOf, requests, type Samples, type sampleSeries } from "@tephra/wire";
import { defineOps } from "./serve.ts";

/** One value of a step. */
const values: Readonly<Record<Exclude<(typeof sampleSeries)[number], "stored">, (step: SampleStep) => number | null>> =
  {
    bytes_in: ({ bytesRead }) => bytesRead,
    bytes_out: ({ bytesStored }) => bytesStored,
    ends_succeeded: ({ succeeded }) => succeeded,
    ends_failed: ({ failed }) => failed,
    ends_cancelled: ({ cancelled }) => cancelled,
    queue_waiting: ({ waiting }) => waiting,
    queue_running: ({ running }) => running,
    queue_oldest: ({ oldestSeconds }) => oldestSeconds,
    workers: ({ workers }) => workers,
    slots: ({ slots }) => slots,
    volumes_protected: ({ volumes }) => volumes?.protected ?? null,
    volumes_late: ({ volumes }) => volumes?.late ?? null,
    volumes_at_risk: ({ volumes }) => volumes?.["at risk"] ?? null,
    volumes_never: ({ volumes }) => volumes?.never ?? null,
    volumes_excluded: ({ volumes }) => volumes?.excluded ?? null,
  };

/** What the installation did, as the console draws it. */
export const samples = {
  list: defineOps({
    ...requests["GET /ops/samples"],
    handle: async ({ database, config }, { query: { series, from, to, points } }) => {
      const { asOf, stepSeconds, starts, steps } = await readSamples(database, {
        from: from ?? null,
        to: to ?? null,
        points,
      });
      const valuesOf = (name: (typeof series)[number]): [string, (number | null)[]][] =>
        name === "stored"
          ? config.repositories.map(({ name: of }) => [`stored:${of}`, steps.map(({ stored }) => stored?.[of] ?? null)])
          : [[name, steps.map(values[name])]];
      const body: Samples = {
        as_of: asOf.toISOString(),
        step_seconds: stepSeconds,
        t: starts.map((start) => start.toISOString()),
        series: Object.fromEntries(series.flatMap(valuesOf)),
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/samples"> };
    },
  }),
};
