import { Prisma } from "../generated/client.ts";

/**
 * The newest version of plans, inputs and reports that this release reads, and the one of the plans that it writes. A document without a
 * version is of version 1, as all inputs and reports are so far. A release that changes what a document means, so that an older one would do
 * something else, counts it up and writes it into that document; a field that an older release may ignore needs no new version. Inputs and
 * reports of an operation's tasks follow its plan: whoever can read the plan must be able to read them.
 */
export const documentVersion = 1;

/** SQL: whether the column holds a document of a version that this release does not know. A malformed version is none. */
export const isNewer = (column: "t.input" | "t.report" | "o.input" | "o.plan"): Prisma.Sql =>
  Prisma.sql`coalesce(jsonb_path_exists(${Prisma.raw(column)}, 'strict $.version ? (@ > $known)',
    jsonb_build_object('known', ${documentVersion}::int), true), false)`;
