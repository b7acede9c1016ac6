import { endSnooze, snoozeAlert } from "@tephra/control";
import { type AnswerOf, requests } from "@tephra/wire";
import { defineOps, type OpsCall } from "./serve.ts";
import { viewAlert } from "./views.ts";

/** What stands in the path for an alert without a subject. */
const noSubject = "-";

const keyOf = ({ params }: OpsCall) => {
  const { code = "", subject = noSubject } = params;
  return { code, subject: subject === noSubject ? null : subject };
};

/** Alerts that admins know of. */
export const alerts = {
  snooze: defineOps({
    ...requests["PUT /ops/alerts/:code/:subject/snooze"],
    handle: async ({ database, config }, call) => {
      const alert = viewAlert(await snoozeAlert(database, config, call.principal, keyOf(call), call.body));
      return { status: 200, body: { alert } satisfies AnswerOf<"PUT /ops/alerts/:code/:subject/snooze"> };
    },
  }),

  endSnooze: defineOps({
    handle: async ({ database }, call) => {
      await endSnooze(database, call.principal, keyOf(call));
      return { status: 204 };
    },
  }),
};
