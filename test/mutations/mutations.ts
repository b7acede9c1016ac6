/** One deliberate break: a piece of a file that stands there once, what stands there instead, and the test that must go red. */
export interface Mutation {
  name: string;
  file: string;
  from: string;
  to: string;
  /** File of tests. */
  suite: string;
  /** Part of the name of the test. */
  test: string;
}

const engine = "packages/engine/src";
const control = "packages/control/src";
const posix = { file: `${engine}/repository/posix.ts`, suite: "test/contract/posix.test.ts" };
const tasks = { file: `${control}/tasks.ts`, suite: "test/control/tasks.test.ts" };
const reconciler = { file: `${control}/reconciler.ts`, suite: "test/control/reconciler.test.ts" };

/** What would cost people their data, or show it to others, if nothing noticed. */
export const mutations: readonly Mutation[] = [
  {
    ...posix,
    name: "a name that is taken is taken for ours",
    from: "if (!(await fileHolds(existing.file, body, signal))) throw new ObjectConflictError(key);",
    to: "",
    test: "with other bytes it is a conflict",
  },
  {
    ...posix,
    name: "an object replaces what has its name",
    from: "await link(temporary, path);",
    to: "await (await import('node:fs/promises')).rename(temporary, path);",
    test: "of many writers with different bytes exactly one wins",
  },
  {
    ...posix,
    name: "files get whatever mode the umask leaves",
    from: "await file.chmod(fileMode);",
    to: "",
    test: "files are 0660 and folders 0770 whatever the umask",
  },
  {
    ...posix,
    name: "a container may be a symbolic link",
    from: "if (real !== join(root, container)) {",
    to: "if (real === '') {",
    test: "a container that is a symbolic link is refused",
  },
  {
    ...posix,
    name: "a temporary file stays when a put fails",
    from: "await unlink(temporary).catch(ignoreMissing);",
    to: "",
    test: "no temporary file is left behind",
  },
  {
    ...posix,
    name: "the fence is not asked before a name is given",
    from: "        ctx.signal.throwIfAborted();\n        ctx.fence();\n        const outcome",
    to: "        const outcome",
    test: "a writer that may no longer write leaves nothing under the name",
  },
  {
    name: "the MD5 of an object is not compared",
    file: `${engine}/threads/cpu-tasks.ts`,
    from: 'if (md5 !== request.md5) return { outcome: "object", reason: "the MD5 does not match" };',
    to: "",
    suite: "test/format/damage.test.ts",
    test: "",
  },
  {
    name: "hashes of blocks are not compared in lanes",
    file: `${engine}/threads/write-lanes.ts`,
    from: "if (hashes.compare(piece.expected, block * 32, block * 32 + 32, index * 32, index * 32 + 32) !== 0) return null;",
    to: "",
    suite: "packages/engine/src/copy-lanes.test.ts",
    test: "are named when damaged, and a damaged block is never written",
  },
  {
    name: "threads write on when the lease is over",
    file: `${engine}/threads/write-lanes.ts`,
    from: "if (process.hrtime.bigint() >= Atomics.load(target.writableUntil, 0)) return false;",
    to: "",
    suite: "packages/engine/src/engine.test.ts",
    test: "is written by threads up to the moment that is shared with them",
  },
  {
    name: "an old object reaches over newer ones",
    file: `${engine}/merge-layers.ts`,
    from: "if (newer.current !== null) end = Math.min(end, newer.current.offset);",
    to: "",
    suite: "packages/engine/src/merge-layers.test.ts",
    test: "every byte comes from the newest object",
  },
  {
    name: "part of a prefix is a prefix",
    file: `${engine}/layout.ts`,
    from: "if (!prefixPattern.test(prefix)) {",
    to: 'if (prefix === "") {',
    suite: "packages/engine/src/layout.test.ts",
    test: "only a whole prefix is one",
  },
  {
    name: "what is sealed is not compared with what lies there",
    file: `${engine}/seal.ts`,
    from: "  await compareListing(repository, layout, reports, ctx.signal);\n",
    to: "",
    suite: "test/round-trip.test.ts",
    test: "",
  },
  {
    name: "the list of hashes is not read back",
    file: `${engine}/seal.ts`,
    from: '  await readBack(repository, layout, hash.digest("hex"), ctx.signal);\n',
    to: '  hash.digest("hex");\n',
    suite: "test/format/damage.test.ts",
    test: "was not stored as it was written is not sealed",
  },
  {
    ...tasks,
    name: "a task is claimed while another's lease lives",
    from: "(state = 'running' AND lease_until < now()))",
    to: "state = 'running')",
    test: "is one worker's, however many ask at once",
  },
  {
    ...tasks,
    name: "a late report is believed",
    from: "AND claim = $" + "{result.claim} AND state = 'running'`;",
    to: "AND $" + "{result.claim} > 0`;",
    test: "the late worker's report is refused",
  },
  {
    ...tasks,
    name: "a stopping worker costs an attempt",
    from: "attempts = GREATEST(0, attempts - 1), run_after = now()",
    to: "run_after = now()",
    test: "costs no attempt",
  },
  {
    ...reconciler,
    name: "tasks are taken from workers that live",
    from: "t.lease_until < now())",
    to: "t.lease_until IS NOT NULL)",
    test: "leaves one alone whose lease lives",
  },
  {
    ...reconciler,
    name: "a task is given up the moment there is no worker",
    from: "AND t.unplaced_at < now() - $" + "{config.tasks.unplaced_timeout_ms} * interval '1 millisecond' LIMIT 100",
    to: "AND t.unplaced_at IS NOT NULL LIMIT 100",
    test: "counts how long nobody is there to do a task",
  },
  {
    ...reconciler,
    name: "what was dispatched and lost stays so",
    from: "OR (t.state = 'dispatched' AND",
    to: "OR (false AND",
    test: "makes a task ready again that was dispatched and never claimed",
  },
  {
    name: "a project with a thousand tasks goes first",
    file: `${control}/dispatcher.ts`,
    from: "PARTITION BY c.project_id ORDER BY",
    to: "ORDER BY",
    suite: "test/control/dispatcher.test.ts",
    test: "gives a project with one task its turn",
  },
  {
    name: "a deletion keeps its quota",
    file: `${control}/backup-delete.ts`,
    from: "if (row) await releaseQuota(tx, row.projectId, { backups: 1, backup_gigabytes: row.sizeGib });",
    to: "",
    suite: "test/fault/quotas.test.ts",
    test: "",
  },
  {
    name: "other projects' rows are shown",
    file: `${control}/principal.ts`,
    from: "return principal.isAdmin ? {} : { projectId: principal.projectId };",
    to: "return principal.isAdmin || true ? {} : { projectId: principal.projectId };",
    suite: "test/dialects/tenants.test.ts",
    test: "",
  },
  {
    name: "a damaged backup becomes a parent",
    file: `${control}/backups.ts`,
    from: "SELECT id FROM own WHERE damage IS NOT NULL",
    to: "SELECT id FROM own WHERE false",
    suite: "test/system/verify.test.ts",
    test: "makes the next incremental build on an older sound backup",
  },
  {
    name: "an import trusts what a record says",
    file: `${engine}/import-record.ts`,
    from: "named(() => checkPrefix(record.service_metadata))",
    to: "record.service_metadata",
    suite: "packages/engine/src/import-record.test.ts",
    test: "anything but a whole prefix",
  },
  {
    name: "a transaction does not say who acts",
    file: `${control}/database.ts`,
    from: "        await sayWhoActs(tx);\n",
    to: "",
    suite: "test/system/audit.test.ts",
    test: "says who made it",
  },
  {
    name: "a project's cap holds for nobody",
    file: `${control}/dispatcher.ts`,
    from: "OR turn <= coalesce(",
    to: "OR turn - 100 <= coalesce(",
    suite: "test/control/dispatcher.test.ts",
    test: "keeps to its cap while another has something to do",
  },
  {
    name: "a repository's cap counts what is in flight, but not what is chosen with it",
    file: `${control}/dispatcher.ts`,
    from: "placed.left_over < 0",
    to: "placed.left_over < -100",
    suite: "test/control/dispatcher.test.ts",
    test: "never has more tasks than it may",
  },
  {
    name: "a project may ask as often as it likes",
    file: "apps/api/src/identify.ts",
    from: "if (retryAfter !== null) throw",
    to: "if (retryAfter === 0) throw",
    suite: "test/dialects/throttle.test.ts",
    test: "that asks too often",
  },
  {
    name: "who never finishes a header keeps the connection",
    file: "apps/api/src/main.ts",
    from: "headersTimeout: 15_000",
    to: "headersTimeout: 0",
    suite: "test/dialects/slow-clients.test.ts",
    test: "never finish their headers",
  },
  {
    name: "an operation has a group of disks to itself only until the next one comes",
    file: `${control}/groups.ts`,
    from: "if (group.operationId === null) return;",
    to: "if (group.id !== null) return;",
    suite: "test/dialects/instance-groups.test.ts",
    test: "takes one of two requests at once",
  },
  {
    name: "a group is available without one of its disks",
    file: `${control}/groups.ts`,
    from: "CASE WHEN bool_or(o.status = 'error') THEN 'error' ELSE 'available' END",
    to: "'available'",
    suite: "test/system/instance-groups.test.ts",
    test: "has a copy of each disk",
  },
  {
    name: "the disks of a machine that runs are replaced",
    file: `${control}/group-restore.ts`,
    from: 'if (powerState === "SHUTOFF") return;',
    to: 'if (powerState !== "") return;',
    suite: "test/dialects/instance-groups.test.ts",
    test: "refuses a restore and a deletion for each reason",
  },
  {
    name: "a worker logs its configuration",
    file: "apps/worker/src/main.ts",
    from: '{ event: "worker.started", worker: workerId, slots }',
    to: '{ event: "worker.started", worker: workerId, slots, config }',
    suite: "test/system/secrets.test.ts",
    test: "no secret is in a log",
  },
];
