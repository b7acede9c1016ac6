import {
  type BandwidthLimitRow,
  limitKeyOf,
  listBandwidthLimits,
  rateAt,
  removeBandwidthLimit,
  setBandwidthLimit,
} from "@tephra/control";
import { type AnswerOf, type BandwidthLimit, requests } from "@tephra/wire";
import type { Context } from "../context.ts";
import { defineOps, type OpsCall } from "./serve.ts";

const view = (row: BandwidthLimitRow, at: Date): BandwidthLimit => ({
  traffic: row.traffic,
  scope: row.scope,
  name: row.name,
  bytes_per_second: row.bytesPerSecond,
  windows: row.windows,
  bytes_per_second_now: rateAt(row, at),
  changed_by: row.changedBy,
  changed_at: row.changedAt.toISOString(),
});

const keyOf = ({ config }: Context, { params }: OpsCall) =>
  limitKeyOf(config, {
    traffic: params["traffic"] ?? "",
    scope: params["scope"] ?? "",
    name: params["name"] ?? "",
  });

/** How fast volumes are read, and repositories written and read. */
export const limits = {
  list: defineOps({
    handle: async ({ database }) => {
      const { limits: rows, now } = await listBandwidthLimits(database);
      return { status: 200, body: { limits: rows.map((row) => view(row, now)) } satisfies AnswerOf<"GET /ops/limits"> };
    },
  }),

  set: defineOps({
    ...requests["PUT /ops/limits/:traffic/:scope/:name"],
    handle: async (context, call) => {
      const { bytes_per_second: bytesPerSecond, windows } = call.body;
      const key = keyOf(context, call);
      const row = await setBandwidthLimit(context.database, call.principal, key, { bytesPerSecond, windows });
      const body = { limit: view(row, row.changedAt) } satisfies AnswerOf<"PUT /ops/limits/:traffic/:scope/:name">;
      return { status: 200, body };
    },
  }),

  remove: defineOps({
    handle: async (context, call) => {
      await removeBandwidthLimit(context.database, keyOf(context, call));
      return { status: 204 };
    },
  }),
};
