import { z } from "zod";

/** Not checked: ids are opaque to clients. */
export const id = z.string().meta({ format: "uuid" });
/** ISO 8601 with milliseconds, UTC. */
export const time = z.string().meta({ format: "date-time" });
/** Also a count: at most 2^53 - 1. */
export const bytes = z.number().int().nonnegative();

/** Whose work goes first. */
export const Priority = z.enum(["high", "normal", "low"]);
