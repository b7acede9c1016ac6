import { z } from "zod";
import type { OpsRouteKey } from "./answers.ts";
import { proofAges } from "./backups.ts";
import { Priority } from "./fields.ts";
import { bytesPerSecond, timeOfDay, weekDays } from "./limits.ts";
import { Kinds, Retention, Schedule, Squash, Verify } from "./policies.ts";
import { sampleSeries } from "./samples.ts";
import { SignIn } from "./sessions.ts";
import { protectionState } from "./volumes.ts";

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const id = z
  .string()
  .refine((text) => uuid.test(text), "is not a uuid")
  .transform((text) => text.toLowerCase());
/** PostgreSQL stores neither NUL nor lone surrogates. */
const isStorable = (text: string): boolean => !text.includes("\0") && text.isWellFormed();
const text = z.string().refine(isStorable, "has characters that cannot be stored");
const time = z.iso.datetime({ offset: true }).transform((value) => new Date(value));
const limit = z.coerce.number().int().min(1).max(1000).default(100);
/** PATH_MAX of Linux. */
const path = z.string().min(1).max(4096);

const AuditQuery = z.strictObject({
  resource: z
    .enum([
      "backup",
      "volume",
      "snapshot",
      "group",
      "group_snapshot",
      "attachment",
      "transfer",
      "image_transfer",
      "machine_backup",
      "operation",
      "session",
      "alert",
    ])
    .optional(),
  resource_id: id.optional(),
  project_id: z.string().optional(),
  user_id: z.string().optional(),
  worker_id: z.string().optional(),
  request_id: z.string().optional(),
  operation_id: id.optional(),
  since: time.optional(),
  until: time.optional(),
  marker: z
    .string()
    .regex(/^[0-9]{1,18}$/, "is not the id of an entry")
    .transform(BigInt)
    .optional(),
  limit,
});

/** A place in the log of changes, as `next` and the ids of events are. */
const cursor = z.string().regex(/^\d{1,19}-\d{1,18}$/, "is not a cursor: next of an answer, or the id of an event");
const eventTopics = ["changes", "progress", "pulse"] as const;

const EventsQuery = z.strictObject({
  /** Some of `changes`, `progress` and `pulse`, with commas between them. */
  topics: z
    .string()
    .default(eventTopics.join(","))
    .transform((topics) => topics.split(","))
    .pipe(z.array(z.enum(eventTopics)).min(1)),
  /** What has changed since; the header `Last-Event-ID` goes before it. */
  after: cursor.optional(),
});

/** A local day. Before and after, the rules of time zones are guesses. */
const day = z.iso
  .date()
  .refine((text) => text >= "1970-01-01" && text < "3000-01-01", "is not between 1970-01-01 and 2999-12-31");
const volumesMax = 100;

/** `from`, `to`: both included; without them, 35 days until today. */
const DaysQuery = z.strictObject({
  from: day.optional(),
  to: day.optional(),
  tz: z.string().min(1).max(64).default("UTC"),
  /** Ids with commas between them, at most 100. */
  volume_id: z
    .string()
    .transform((ids) => ids.split(","))
    .pipe(z.array(id).max(volumesMax)),
});

/** Words with commas between them. */
const words = <Schema extends z.ZodType<unknown, string>>(one: Schema) =>
  z
    .string()
    .max(2_000)
    .transform((list) => list.split(","))
    .pipe(z.array(one).min(1).max(50));
const flag = z.enum(["0", "1"]).transform((value) => value === "1");

const operationStates = ["queued", "running", "succeeded", "failed", "cancelled"] as const;

/**
 * Of several kinds or states any. `stuck`: only those that no live worker can go on with, or of which no byte has moved for a minute. `worker_id`: that
 * is at work on it; none matches for those who do not see all projects. `from`, inclusive, and `to`, exclusive: when it was asked for.
 */
const OperationsQuery = z.strictObject({
  backup_id: id.optional(),
  volume_id: id.optional(),
  group_id: id.optional(),
  parent_id: id.optional(),
  kind: words(text.regex(/^[a-z-]{1,64}$/, "is not a kind of operation")).optional(),
  state: words(z.enum(operationStates)).optional(),
  project_id: text.min(1).max(255).optional(),
  repository: text.min(1).max(255).optional(),
  worker_id: text.min(1).max(255).optional(),
  request_id: text.min(1).max(255).optional(),
  stuck: flag.default(false),
  from: time.optional(),
  to: time.optional(),
  marker: id.optional(),
  limit,
});

/** Of several statuses, repositories or ages of proof any. `from`, inclusive, and `to`, exclusive: the moment that it is a backup of. */
const BackupsQuery = z.strictObject({
  status: words(text.regex(/^[a-z_-]{1,64}$/, "is not a status")).optional(),
  repository: words(text.min(1).max(255)).optional(),
  proof: words(z.enum(proofAges)).optional(),
  volume_id: id.optional(),
  policy_id: id.optional(),
  /** A part of the name, or how the id begins. */
  q: text.trim().min(1).max(255).optional(),
  damage: flag.default(false),
  /** Its volume is gone. */
  orphan: flag.default(false),
  from: time.optional(),
  to: time.optional(),
  sort: z.enum(["newest", "oldest", "as_of", "name", "size", "stored"]).default("newest"),
  facets: flag.default(false),
  marker: id.optional(),
  limit: z.coerce.number().int().min(1).max(500).default(100),
});

/** `series`: names with commas between them. Without `to` until now, without `from` from a day before. */
const SamplesQuery = z.strictObject({
  series: z
    .string()
    .default(sampleSeries.join(","))
    .transform((names) => names.split(","))
    .pipe(z.array(z.enum(sampleSeries)).min(1)),
  from: time.optional(),
  to: time.optional(),
  /** At most so many steps. */
  points: z.coerce.number().int().min(2).max(1_000).default(300),
});

const projectId = z.string().regex(/^[0-9a-f-]{1,64}$/, "is not the id of a project");

const device = text.regex(/^\/dev\/[a-z0-9/_-]{1,58}$/, "is not the name of a device");
/** Maximum length of a unix socket address. */
const socket = text.max(107).regex(/^\//, "is not an absolute path");
const configuration = z
  .record(z.string(), z.unknown())
  .refine((value) => isStorable(JSON.stringify(value)) && !JSON.stringify(value).includes("\\u0000"), {
    error: "has characters that cannot be stored",
  });

const changeable = {
  name: text.min(1).max(255),
  power_state: z.enum(["ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED", "MIGRATING", "ERROR"]),
  boot_volume_id: id,
  driver: z.enum(["record", "qmp"]),
  qmp_socket: socket.nullable(),
  agent_socket: socket.nullable(),
  freeze_mountpoints: z.array(text.min(1).max(4096)).min(1).max(100).nullable(),
  configuration,
};

const filePath = z.string().max(4096);
/** Of the table of the disk; 0: the whole disk. Without it, the only one that has a file system. */
const partition = z.coerce.number().int().min(0).max(100_000).optional();

const FilesQuery = z.strictObject({
  path: filePath.default("/"),
  partition,
  marker: z
    .string()
    .regex(/^[0-9]{1,15}$/, "is not a next_marker")
    .optional(),
  limit: z.coerce.number().int().min(1).max(1000).default(1000),
});
const ContentQuery = z.strictObject({ path: filePath.min(1), partition });

const NewInstance = z.strictObject({
  ...changeable,
  id: id.optional(),
  project_id: projectId.optional(),
  power_state: changeable.power_state.default("ACTIVE"),
  boot_volume_id: id.nullable().default(null),
  driver: changeable.driver.default("record"),
  qmp_socket: changeable.qmp_socket.default(null),
  agent_socket: changeable.agent_socket.default(null),
  freeze_mountpoints: changeable.freeze_mountpoints.default(null),
  configuration: configuration.prefault({}),
});

const ImportBody = z
  .strictObject({
    /** If absent, the file that already exists for `id` in the backend is used. */
    path: path.nullish(),
    /** An image that stays where it is, such as `qcow2:/PATH`; only of a backend that takes such. */
    image: path.nullish(),
    /** The id by which earlier backups know the volume. */
    id: id.nullish(),
    /** Only with an `image` or `id`: the backend that takes the image, or holds the volume's file or will receive it. */
    backend: text.min(1).max(255).nullish(),
    name: text.max(255).nullish(),
    project_id: text.min(1).max(255).nullish(),
  })
  .refine((body) => body.path || body.image || body.id, "path, image or id is required")
  .refine((body) => !body.path || !body.image, "path and image exclude each other")
  .refine((body) => body.id || body.image || !body.backend, "backend is for an image, or a volume with an id");

const RescanBody = z
  .strictObject({
    project_id: z
      .string()
      .regex(/^[\w.-]{1,255}$/, "is not a valid project id")
      .nullish(),
  })
  .prefault({});

const changeablePolicy = {
  name: text.min(1).max(255),
  description: text.max(1024).nullable(),
  enabled: z.boolean(),
  schedule: Schedule,
  kind: Kinds,
  retention: Retention.nullable(),
  squash: Squash.nullable(),
  repository: text.min(1).max(255).nullable(),
  force: z.boolean(),
  priority: Priority,
  verify: Verify.nullable(),
  target_hours: z.number().int().min(1).max(100_000).nullable(),
};

const NewPolicy = z.strictObject({
  ...changeablePolicy,
  /** Null: published for every project, which an admin may do; absent: the caller's. */
  project_id: projectId.nullable().optional(),
  description: changeablePolicy.description.default(null),
  enabled: changeablePolicy.enabled.default(true),
  kind: changeablePolicy.kind.default({ full_every: 7 }),
  retention: changeablePolicy.retention.default(null),
  squash: changeablePolicy.squash.default(null),
  repository: changeablePolicy.repository.default(null),
  force: changeablePolicy.force.default(true),
  priority: changeablePolicy.priority.default("normal"),
  verify: changeablePolicy.verify.default(null),
  target_hours: changeablePolicy.target_hours.default(null),
});

const NewAssignment = z
  .strictObject({ volume_id: id.optional(), instance_id: id.optional(), project_id: projectId.optional() })
  .refine((of) => Object.values(of).filter((value) => value !== undefined).length === 1, {
    error: "names exactly one of volume_id, instance_id and project_id",
  });

const LimitBody = z.strictObject({
  bytes_per_second: bytesPerSecond.nullable().default(null),
  windows: z
    .array(
      z.strictObject({
        from: timeOfDay,
        /** Before `from`: of the next day. */
        to: timeOfDay,
        days: z
          .array(z.enum(weekDays))
          .min(1)
          .default([...weekDays]),
        timezone: z.string().min(1).max(64),
        bytes_per_second: bytesPerSecond.nullable(),
      }),
    )
    .max(50)
    .default([]),
});

/** That the first run of a policy deletes more than half of what is there is meant. */
const confirm = z.boolean().default(false);

/** `as_of`: at another time; `change`: by other rules than those of the policy. */
const PreviewBody = z.strictObject({
  as_of: time.optional(),
  change: z
    .strictObject({ retention: Retention.nullable(), squash: Squash.nullable(), timezone: z.string().min(1).max(64) })
    .partial()
    .default({}),
  volume_id: id.optional(),
});

/**
 * `policy_id`: by the rules of that policy, apart from what is given beside it. `full_bytes`: what a full backup stores; `change_rate`: the
 * share of the volume that is written in a day.
 */
const SimulateBody = z
  .strictObject({
    policy_id: id.optional(),
    schedule: Schedule.optional(),
    kind: Kinds.optional(),
    retention: Retention.nullable().optional(),
    squash: Squash.nullable().optional(),
    from: time.optional(),
    days: z.number().int().min(1).max(3660).default(365),
    full_bytes: z
      .number()
      .int()
      .min(1)
      .max(1e15)
      .default(100 * 1024 ** 3),
    change_rate: z.number().min(0).max(1).default(0.02),
  })
  .refine((body) => body.policy_id !== undefined || body.schedule !== undefined, {
    error: "policy_id or schedule has to be given",
  });

/** Query and JSON body of each route that has either. A key that is not in them is refused. */
export const requests = {
  "POST /ops/session": { body: SignIn },
  "GET /ops/operations": { query: OperationsQuery },
  "GET /ops/operations/:id": { query: z.strictObject({ tasks: flag.default(false) }) },
  "PUT /ops/operations/:id/priority": { body: z.strictObject({ priority: Priority }) },
  "GET /ops/notifications": {
    query: z.strictObject({ state: z.enum(["pending", "delivered", "dead"]).default("dead"), limit }),
  },
  "GET /ops/audit": { query: AuditQuery },
  "GET /ops/changes": {
    query: z.strictObject({ after: cursor.optional(), limit: z.coerce.number().int().min(1).max(500).default(500) }),
  },
  "GET /ops/events": { query: EventsQuery },
  "GET /ops/instances": {
    query: z.strictObject({
      /** A part of the name, or how the id begins. */
      q: text.trim().min(1).max(255).optional(),
      state: changeable.power_state.optional(),
      /** `next` of the page before: a project and an id, since projects may use the same ids. */
      marker: z
        .string()
        .regex(/^[^:\s]{1,255}:[0-9a-f-]{36}$/, "is not next of an answer")
        .optional(),
      limit,
    }),
  },
  "POST /ops/instances": { body: z.strictObject({ instance: NewInstance }) },
  "PUT /ops/instances/:id": { body: z.strictObject({ instance: z.strictObject(changeable).partial() }) },
  "POST /ops/instances/:id/attach": { body: z.strictObject({ volume_id: id, device: device.nullish() }) },
  "POST /ops/instances/:id/detach": { body: z.strictObject({ volume_id: id }) },
  "GET /ops/volumes": {
    /** `marker`: `next` of the page before. */
    query: z.strictObject({
      state: protectionState.optional(),
      /** A part of the name, or how the id begins. */
      q: text.trim().min(1).max(255).optional(),
      project_id: text.min(1).max(255).optional(),
      /** That applies to it. */
      policy_id: id.optional(),
      backend: text.min(1).max(255).optional(),
      /** `age`: without a good backup first, then by its age. `size`, `stored`: most first. */
      sort: z.enum(["age", "name", "size", "stored"]).default("age"),
      marker: id.optional(),
      limit,
    }),
  },
  "GET /ops/protection/days": { query: DaysQuery },
  "PUT /ops/volumes/:id/exclusion": {
    body: z.strictObject({ reason: text.min(1).max(255), until: time.nullable().default(null) }),
  },
  /** `until`: at most 90 days ahead. */
  "PUT /ops/alerts/:code/:subject/snooze": {
    body: z.strictObject({ until: time, reason: text.trim().min(1).max(255) }),
  },
  /** `marker`: `next` of the page before; `q`: how its id begins. */
  "GET /ops/projects": {
    query: z.strictObject({ q: text.trim().min(1).max(255).optional(), marker: text.max(255).optional(), limit }),
  },
  "GET /ops/samples": { query: SamplesQuery },
  "GET /ops/search": { query: z.strictObject({ q: text.trim().min(3).max(255) }) },
  "GET /ops/policies": { query: z.strictObject({ limit }) },
  "POST /ops/policies": { body: z.strictObject({ policy: NewPolicy, confirm }) },
  "PUT /ops/policies/:id": { body: z.strictObject({ policy: z.strictObject(changeablePolicy).partial(), confirm }) },
  "POST /ops/policies/simulate": { body: SimulateBody },
  "POST /ops/policies/:id/preview": { body: PreviewBody.prefault({}) },
  "DELETE /ops/policies/:id": {
    /** What becomes of whatever it is assigned to: nothing protects it any more, or another policy does. */
    query: z
      .strictObject({ assignments: z.literal("remove").optional(), move_to: id.optional() })
      .refine((query) => query.assignments === undefined || query.move_to === undefined, {
        error: "assignments and move_to exclude each other",
      }),
  },
  "GET /ops/policies/:id/assignments": { query: z.strictObject({ limit }) },
  "POST /ops/policies/:id/assignments": { body: z.strictObject({ assignment: NewAssignment, confirm }) },
  "GET /ops/backups": { query: BackupsQuery },
  "GET /ops/backups/:id/restore-check": {
    /** The volume that is overwritten, or the length of a new one, of whole GiB; neither: a new one of the backup's length. */
    query: z
      .strictObject({
        volume_id: id.optional(),
        bytes: z.coerce
          .number()
          .int()
          .min(1)
          .max(2 ** 50)
          .optional(),
      })
      .refine((query) => query.volume_id === undefined || query.bytes === undefined, {
        error: "volume_id and bytes exclude each other",
      }),
  },
  "PUT /ops/backups/:id/hold": {
    body: z.strictObject({ hold: z.strictObject({ until: time, reason: text.min(1).max(255) }) }),
  },
  "GET /ops/deleted-backups": { query: z.strictObject({ id: id.optional(), volume_id: id.optional(), limit }) },
  "POST /ops/policies/:id/run": { body: z.strictObject({}).prefault({}) },
  "GET /ops/policies/:id/runs": { query: z.strictObject({ limit }) },
  "GET /ops/policies/:id/runs/:run_id": {
    query: z.strictObject({
      state: z.enum(["waiting", "running", "succeeded", "failed", "skipped"]).optional(),
      limit,
    }),
  },
  "POST /ops/backups/:id/verify": {
    body: z.strictObject({ mode: z.enum(["quick", "deep", "drill"]).default("quick") }).prefault({}),
  },
  "GET /ops/backups/:id/files": { query: FilesQuery },
  "GET /ops/backups/:id/files/content": { query: ContentQuery },
  "GET /ops/snapshots/:id/files": { query: FilesQuery },
  "GET /ops/snapshots/:id/files/content": { query: ContentQuery },
  "POST /ops/backups/:id/squash": { body: z.strictObject({}).prefault({}) },
  "POST /ops/repositories/:name/reap": {
    body: z.strictObject({ dry_run: z.boolean().default(false) }).prefault({}),
  },
  "POST /ops/repositories/:name/rescan": { body: RescanBody },
  "PUT /ops/limits/:traffic/:scope/:name": { body: LimitBody },
  "POST /ops/volumes/import": { body: ImportBody },
  "POST /ops/volumes/:id/export": {
    /** `overwrite`: an existing regular file is replaced. */
    body: z.strictObject({ path, overwrite: z.boolean().default(false) }),
  },
} as const satisfies Partial<Readonly<Record<OpsRouteKey, { query?: z.ZodType; body?: z.ZodType }>>>;

type RouteWithBody = {
  [Key in keyof typeof requests]: (typeof requests)[Key] extends { body: z.ZodType } ? Key : never;
}[keyof typeof requests];

/** The body that a client sends to this route. */
export type BodyOf<Key extends RouteWithBody> = z.input<(typeof requests)[Key]["body"]>;
