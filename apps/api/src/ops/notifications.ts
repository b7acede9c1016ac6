import { type DeliveryRow, deliveryStates, listDeliveries, retryDelivery } from "@tephra/control";
import type { AnswerOf, Notification } from "@tephra/wire";
import { z } from "zod";
import { defineOps } from "./serve.ts";

const Query = z.strictObject({
  state: z.enum(deliveryStates).default("dead"),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
});

const view = (row: DeliveryRow): Notification => ({
  id: row.id,
  message_id: row.messageId,
  event_type: row.eventType,
  target: row.target,
  state: row.state,
  attempts: row.attempts,
  last_error: row.lastError,
  next_attempt_at: row.state === "pending" ? row.runAfter.toISOString() : null,
  payload: row.payload,
  created_at: row.createdAt.toISOString(),
});

/** Notifications by target: undeliverable ones, unless another state is requested. */
export const notifications = {
  list: defineOps({
    query: Query,
    handle: async ({ database }, { query }) => {
      const rows = await listDeliveries(database, query);
      return { status: 200, body: { notifications: rows.map(view) } satisfies AnswerOf<"GET /ops/notifications"> };
    },
  }),

  retry: defineOps({
    handle: async ({ database }, { params }) => {
      await retryDelivery(database, params["id"] ?? "");
      return { status: 202, body: {} satisfies AnswerOf<"POST /ops/notifications/:id/retry"> };
    },
  }),
};
