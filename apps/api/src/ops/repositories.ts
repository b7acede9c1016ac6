import { requestRescan } from "@tephra/control";
import { z } from "zod";
import type { Context } from "../context.ts";
import { type OpsAnswer, type OpsCall, parse } from "./serve.ts";

const RescanBody = z
  .strictObject({
    project_id: z
      .string()
      .regex(/^[\w.-]{1,255}$/, "is no project id")
      .nullish(),
  })
  .prefault({});

export const repositories = {
  /** Every backup goes to the project that it says it is of, unless the body names one for all of them. */
  rescan: async ({ database, config }: Context, { principal, params, body }: OpsCall): Promise<OpsAnswer> => {
    const request = parse(RescanBody, body);
    const { id } = await requestRescan(database, config, principal, {
      repository: params["name"] ?? "",
      projectId: request.project_id ?? null,
    });
    return { status: 202, body: { operation: { id } } };
  },
};
