// Who may import whom. A rule here is a rule of ARCHITECTURE.md; project references alone do not stop an upward import.
const generated = "^packages/control/src/generated/";
const tests = "\\.test\\.ts$";
/** From the ground up: a room imports those before it, never one of its own floor or above. */
const controlRooms = [
  ["db"],
  ["telemetry", "limits"],
  ["queue"],
  ["rows", "events", "sign-in", "tls"],
  ["volumes", "repositories"],
  ["backups", "image-transfers"],
  ["groups"],
  ["machines"],
  ["policies"],
  ["overview"],
  ["upkeep", "admin"],
];
const dialects = "^apps/api/src/(cinder|instance-groups|ovirt|ops)/";

/** @type {import("dependency-cruiser").IConfiguration} */
module.exports = {
  forbidden: [
    {
      name: "no-cycles",
      severity: "error",
      from: { pathNot: generated },
      to: { circular: true, viaOnly: { pathNot: generated } },
    },
    {
      name: "engine-and-control-stand-alone",
      comment: "Both know the names and limits of packages/format, which knows nobody.",
      severity: "error",
      from: { path: "^packages/([^/]+)/src/", pathNot: [tests, "^packages/engine/src/volume/cinder/"] },
      to: { path: "^(apps|packages|scripts|test|demo|bench)/", pathNot: ["^packages/$1/", "^packages/format/"] },
    },
    {
      name: "one-volume-driver-speaks-openstack",
      severity: "error",
      from: { path: "^packages/engine/src/volume/cinder/", pathNot: tests },
      to: { path: "^(apps|packages)/", pathNot: "^packages/(engine|format|openstack)/" },
    },
    {
      name: "openstack-imports-nothing-of-ours",
      severity: "error",
      from: { path: "^packages/openstack/src/", pathNot: tests },
      to: { path: "^(apps|packages|scripts|test|demo|bench)/", pathNot: "^packages/openstack/" },
    },
    {
      name: "format-imports-nothing-of-ours",
      severity: "error",
      from: { path: "^packages/format/src/", pathNot: tests },
      to: { path: "^(apps|packages|scripts|test|demo|bench)/", pathNot: "^packages/format/" },
    },
    {
      name: "wire-imports-nothing-of-ours",
      comment: "Schemas for programs of every kind: a browser has no modules of Node either.",
      severity: "error",
      from: { path: "^packages/wire/src/", pathNot: tests },
      to: { pathNot: "^(packages/wire/src/|node_modules/zod/)" },
    },
    {
      name: "api-imports-only-control-wire-and-format",
      severity: "error",
      from: { path: "^apps/api/src/", pathNot: tests },
      to: {
        path: "^(apps|packages|scripts|test|demo|bench)/",
        pathNot: "^(apps/api|packages/control|packages/format|packages/openstack|packages/wire)/",
      },
    },
    {
      name: "worker-imports-only-control-engine-and-format",
      severity: "error",
      from: { path: "^apps/worker/src/", pathNot: tests },
      to: {
        path: "^(apps|packages|scripts|test|demo|bench)/",
        pathNot: "^(apps/worker|packages/control|packages/engine|packages/format|packages/openstack)/",
      },
    },
    {
      name: "transfer-imports-only-control-engine-and-format",
      severity: "error",
      from: { path: "^apps/transfer/src/", pathNot: tests },
      to: {
        path: "^(apps|packages|scripts|test|demo|bench)/",
        pathNot: "^(apps/transfer|packages/control|packages/engine|packages/format)/",
      },
    },
    {
      name: "command-lines-import-only-engine-and-wire",
      severity: "error",
      from: { path: "^apps/cli/src/", pathNot: tests },
      to: { path: "^(apps|packages|scripts|test|demo|bench)/", pathNot: "^(apps/cli|packages/engine|packages/wire)/" },
    },
    {
      name: "tests-stand-without-the-demonstration",
      severity: "error",
      from: { path: "^test/" },
      to: { path: "^demo/" },
    },
    {
      name: "tephra-speaks-rest-only",
      comment: "The command line over the REST API must not reach the engine, not even through another file.",
      severity: "error",
      from: { path: "^apps/cli/src/tephra\\.ts$" },
      to: { path: "^packages/", pathNot: "^packages/wire/", reachable: true },
    },
    {
      name: "clients-import-only-wire",
      severity: "error",
      from: { path: "^apps/(cli/src/tephra(/|\\.ts$)|console/)", pathNot: tests },
      to: {
        path: "^(apps|packages)/",
        pathNot:
          "(^|/)node_modules/|^(packages/wire/|apps/console/|apps/cli/src/(tephra/|(machine-trust|progress-bar)\\.ts$))",
      },
    },
    {
      name: "http-knows-no-dialect",
      severity: "error",
      from: { path: "^apps/api/src/http/", pathNot: tests },
      to: { path: [dialects, "^apps/api/src/openstack/"] },
    },
    {
      name: "a-dialect-never-imports-another",
      severity: "error",
      from: { path: "^apps/api/src/(cinder|instance-groups|ovirt|ops)/", pathNot: tests },
      to: { path: dialects, pathNot: "^apps/api/src/$1/" },
    },
    ...controlRooms.map((rooms, floor) => ({
      name: `control-imports-downward-${rooms.join("-")}`,
      comment:
        "Verbs stand on rows, rows on the queue: see ARCHITECTURE.md. Only upkeep and admin end other domains' operations.",
      severity: "error",
      from: { path: `^packages/control/src/(${rooms.join("|")})/`, pathNot: tests },
      to: {
        path: `^packages/control/src/(${controlRooms.slice(floor).flat().join("|")})/`,
        pathNot: "^packages/control/src/$1/",
      },
    })),
    {
      name: "generated-types-are-named-by-rows",
      comment: "Everything above takes the types of rows from rows/, and SQL from db/.",
      severity: "error",
      from: { path: "^packages/control/src/", pathNot: [generated, "^packages/control/src/(db|rows|queue|events)/"] },
      to: { path: generated },
    },
    {
      name: "the-api-does-no-work",
      comment: "Claims, plans and reports are the workers'.",
      severity: "error",
      from: { path: "^apps/api/src/", pathNot: tests },
      to: { path: "^packages/control/(dist|src)/work\\." },
    },
    {
      name: "engine-format-stands-low",
      severity: "error",
      from: { path: "^packages/engine/src/format/", pathNot: tests },
      to: { path: "^packages/engine/src/", pathNot: "^packages/engine/src/(format/|codec/|errors\\.ts$)" },
    },
    {
      name: "engine-places-stand-apart",
      comment: "They meet through contracts alone: an encrypted repository is one by the repository's contract.",
      severity: "error",
      from: { path: "^packages/engine/src/(repository|volume|encryption)/", pathNot: tests },
      to: {
        path: "^packages/engine/src/(repository|volume|encryption|hypervisor|chain|backup|restore|catalogue)/",
        pathNot: ["^packages/engine/src/$1/", "^packages/engine/src/repository/(repository|passed-over)\\.ts$"],
      },
    },
    {
      name: "backup-does-not-know-restore",
      severity: "error",
      from: { path: "^packages/engine/src/backup/", pathNot: tests },
      to: { path: "^packages/engine/src/restore/" },
    },
    {
      name: "restore-does-not-know-backup",
      severity: "error",
      from: { path: "^packages/engine/src/restore/", pathNot: tests },
      to: { path: "^packages/engine/src/backup/" },
    },
    {
      name: "engine-without-servers",
      comment: "The engine is a library: no database, no queue, no HTTP framework.",
      severity: "error",
      from: { path: "^packages/engine/src/" },
      to: { path: "node_modules/(@prisma|pg|bullmq|ioredis|express|pino)" },
    },
    {
      name: "resolvable",
      severity: "error",
      from: {},
      to: { couldNotResolve: true, pathNot: generated },
    },
  ],
  options: {
    doNotFollow: { path: ["node_modules", "(^|/)dist/"] },
    exclude: { path: "(^|/)golden/" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.base.json" },
    // "types": what @types has for a package may say nothing else.
    enhancedResolveOptions: { exportsFields: ["exports"], conditionNames: ["types", "import", "node", "default"] },
  },
};
