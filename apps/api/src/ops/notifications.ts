import { type DeliveryRow, listDeliveries, retryDelivery } from "@tephra/control";
import { type AnswerOf, type Notification, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";

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
    ...requests["GET /ops/notifications"],
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
