import { readFileSync } from "node:fs";
import { findPackageJSON } from "node:module";
import { Command, CommanderError } from "commander";
import { addAlertCommands } from "./tephra/alerts.ts";
import { addAuditCommand } from "./tephra/audit.ts";
import { addBackupCommands } from "./tephra/backups.ts";
import { addCompletionCommands } from "./tephra/completion.ts";
import { addDiskCommands } from "./tephra/disks.ts";
import { addDoctorCommand } from "./tephra/doctor.ts";
import { addInstanceCommands } from "./tephra/instances.ts";
import { addLimitCommands } from "./tephra/limits.ts";
import { addLookCommands } from "./tephra/look.ts";
import { addMachineCommands } from "./tephra/machines.ts";
import { addMessageCommands } from "./tephra/messages.ts";
import { addNotificationCommands } from "./tephra/notifications.ts";
import { cellText } from "./tephra/output.ts";
import { addPasswordCommand } from "./tephra/password.ts";
import { addPolicyCommands } from "./tephra/policies.ts";
import { addProjectCommands } from "./tephra/projects.ts";
import { addRecordCommands } from "./tephra/records.ts";
import { addRetentionCommands } from "./tephra/retention.ts";
import { addGlobalOptions } from "./tephra/session.ts";
import { addSnapshotCommands } from "./tephra/snapshots.ts";
import { addStatusCommands } from "./tephra/status.ts";
import { addVolumeCommands } from "./tephra/volumes.ts";
import { addWorkerCommands } from "./tephra/workers.ts";

/** Exit statuses of the process. */
const exitStatus = { failed: 1, usage: 2 } as const;

async function main(args: string[]): Promise<void> {
  // Before parsing: usage errors must be JSON too.
  const json = args.includes("--json");
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(); // The reader closed the pipe.
  });
  try {
    await buildProgram().parseAsync(args, { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return;
      process.exitCode = exitStatus.usage;
      if (json) printError({ code: "usage", message: error.message.replace(/^error: /, "") });
      return;
    }
    process.exitCode = exitStatus.failed;
    const fault = describe(error);
    process.stderr.write(`tephra: ${cellText(fault.message)}\n`);
    if (json) printError(fault);
  }
}

function buildProgram(): Command {
  const program = new Command("tephra")
    .description("Backs up block volumes, over Tephra's REST API. Ids may be given as names where exactly one matches.")
    .version(releaseOf(), "--version", "print the release")
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError("(--help shows how)")
    .exitOverride();
  addCommands(program);
  addCompletionCommands(program, addCommands);
  return program;
}

/** Everything that asks the service, and what all of it takes. */
function addCommands(program: Command): void {
  addGlobalOptions(program);
  addVolumeCommands(program);
  addSnapshotCommands(program);
  addBackupCommands(program);
  addInstanceCommands(program);
  addMachineCommands(program);
  addDiskCommands(program);
  addRetentionCommands(addPolicyCommands(program));
  addRecordCommands(program);
  addMessageCommands(program);
  addNotificationCommands(program);
  addLimitCommands(program);
  addStatusCommands(program);
  addAlertCommands(program);
  addWorkerCommands(program);
  addProjectCommands(program);
  addLookCommands(program);
  addAuditCommand(program);
  addDoctorCommand(program);
  addPasswordCommand(program);
}

/** The release: of the package, whose file is above this one, bundled or not. */
function releaseOf(): string {
  const path = findPackageJSON("..", import.meta.url);
  return path === undefined ? "unknown" : JSON.parse(readFileSync(path, "utf8")).version;
}

interface Fault {
  code: string;
  message: string;
  [detail: string]: unknown;
}

function describe(error: unknown): Fault {
  if (!(error instanceof Error)) return { code: "unknown", message: String(error) };
  const {
    message,
    code = "unknown",
    status,
    operation,
  } = error as Error & { code?: string; status?: number; operation?: unknown };
  return { code, message, ...(status === undefined ? {} : { status }), ...(operation ? { operation } : {}) };
}

function printError(error: Fault): void {
  process.stdout.write(`${JSON.stringify({ error })}\n`);
}

await main(process.argv.slice(2));
