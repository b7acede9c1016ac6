import { getOperation, listOperations, type OperationProgress } from "@tephra/control";
import { type Handle, type Route, shown } from "./call.ts";
import { type Element, listOf } from "./element.ts";
import { endOfJob } from "./fixed-ids.ts";
import { refuseFollow } from "./follow.ts";
import { type Searchable, searched } from "./search.ts";

/** State of an operation → status of a job. */
const statuses: Readonly<Record<OperationProgress["state"], string>> = {
  queued: "started",
  running: "started",
  succeeded: "finished",
  failed: "failed",
  cancelled: "aborted",
};

/** Jobs of a list that names no correlation id: the newest. */
const listedMax = 1_000;

const view = (operation: OperationProgress): Element => ({
  id: operation.id,
  path: `/jobs/${operation.id}`,
  fields: {
    description: operation.kind,
    auto_cleared: true,
    external: false,
    start_time: operation.createdAt,
    end_time: operation.finishedAt,
    status: statuses[operation.state],
  },
});

const searchable: Searchable<OperationProgress> = {
  fields: {
    correlation_id: (operation) => [operation.requestId],
    id: (operation) => [operation.id],
    status: (operation) => [statuses[operation.state]],
    description: (operation) => [operation.kind],
  },
  bare: ["description"],
};

/** The value of `correlation_id=…`, so that old operations are found by it, too. */
const correlationIn = (search: string): string | undefined => {
  const [, quoted, bare] = /(?:^|\s)correlation_id\s*=\s*(?:"([^"]*)"|([^\s"*]+)(?=\s|$))/i.exec(search) ?? [];
  return quoted ?? bare;
};

const listJobs: Handle = async ({ database }, call) => {
  refuseFollow(call.follow);
  const requestId = correlationIn(call.parameters.text("search") ?? "");
  const operations = await listOperations(database, call.principal, {
    ...(requestId !== undefined && { requestId }),
    limit: listedMax,
  });
  return shown("jobs", listOf("job", searched(call, operations, searchable).map(view)));
};

/** What an action has done at once is no operation: its job says when. */
const endedView = (id: string, end: Date): Element => ({
  id,
  path: `/jobs/${id}`,
  fields: {
    description: "action",
    auto_cleared: true,
    external: false,
    start_time: end,
    end_time: end,
    status: "finished",
  },
});

const showJob: Handle = async ({ database }, call) => {
  refuseFollow(call.follow);
  const id = call.params["id"] ?? "";
  const end = endOfJob(id);
  if (end !== null) return shown("job", endedView(id.toLowerCase(), end));
  return shown("job", view(await getOperation(database, call.principal, id)));
};

/** The operations of the project, as oVirt's jobs. */
export const jobRoutes: readonly Route[] = [
  ["GET", "/jobs", "ovirt:get", listJobs],
  ["GET", "/jobs/:id", "ovirt:get", showJob],
];
