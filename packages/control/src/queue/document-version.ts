import { Prisma } from "../generated/client.ts";

/**
 * The newest version of plans, inputs and reports that this release reads, and the one that it writes. A document without a version is of
 * version 1. A release that changes what a document means, so that an older one would do something else, counts it up; a field that an older
 * release may ignore needs no new version. Tasks' inputs and reports have the version of their operation's plan: whoever can read the plan
 * can read them.
 */
export const documentVersion = 1;

/** The document as it is stored. One that continues an earlier release's keeps its version. */
export const versioned = <Document extends object>(document: Document): { version: number } & Document => ({
  version: documentVersion,
  ...document,
});

/** SQL: whether the column holds a document of a version that this release does not know. A malformed version is none. */
export const isNewer = (column: "t.input" | "t.report" | "o.input" | "o.plan"): Prisma.Sql =>
  Prisma.sql`coalesce(jsonb_path_exists(${Prisma.raw(column)}, 'strict $.version ? (@ > $known)',
    jsonb_build_object('known', ${documentVersion}::int), true), false)`;
