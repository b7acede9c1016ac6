import { type Compression, compressions, parseCompression, zlibEncoders } from "@tephra/engine";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { backupCommand } from "./engine/backup.ts";
import { listCommand } from "./engine/list.ts";
import { createOutput, DamageFoundError, type Output, reportFailure, UsageError } from "./engine/output.ts";
import { exportCommand, importCommand, rescanCommand } from "./engine/records.ts";
import { initCommand, type NamedRepository } from "./engine/repository.ts";
import { restoreCommand } from "./engine/restore.ts";
import { rewrapCommand } from "./engine/rewrap.ts";
import { squashCommand } from "./engine/squash.ts";
import { verifyCommand } from "./engine/verify.ts";
import { trustMachine } from "./machine-trust.ts";

/** Exit statuses: success, failed or damaged, wrong usage. */
const exitDone = 0;
const exitFailed = 1;
const exitUsage = 2;

/** Runs the command line and returns its exit status. Never throws. */
export async function main(argv: readonly string[]): Promise<number> {
  const interrupt = new AbortController();
  const onSignal = (): void => interrupt.abort(new Error("Interrupted."));
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    process.exit(); // The reader closed the pipe.
  });
  if (argv.some((word) => /^(s3|swift):|https:\/\//.test(word) || /=(s3|swift):/.test(word))) trustMachine();
  const output = createOutput({ json: argv.includes("--json") });
  const program = buildProgram(output, interrupt.signal);
  try {
    await program.parseAsync(argv, { from: "user" });
    return exitDone;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return exitDone;
    if (error instanceof DamageFoundError) return exitFailed;
    const usage = error instanceof CommanderError || error instanceof UsageError;
    // Commander has already written its own message to stderr.
    reportFailure(output, error, { silent: error instanceof CommanderError });
    return usage ? exitUsage : exitFailed;
  } finally {
    process.removeListener("SIGINT", onSignal);
    process.removeListener("SIGTERM", onSignal);
  }
}

function buildProgram(output: Output, signal: AbortSignal): Command {
  const program = new Command("tephra-engine")
    .description("Backs up and restores volumes using only a repository, without a database, queue or service.")
    .showHelpAfterError("(--help shows how)")
    .exitOverride()
    .configureHelp({ sortSubcommands: false });
  const command = (name: string): Command =>
    program
      .command(name)
      .exitOverride()
      .addOption(new Option("--repository <url>", "where backups are stored: posix:FOLDER").makeOptionMandatory())
      .option(
        "--key-file <path>",
        "master keys of encrypted backups, one version:key per line; new backups are encrypted",
      )
      .option("--key-command <program...>", "a program, with its arguments, that prints such lines")
      .option("--json", "print exactly one JSON object on stdout");

  command("init")
    .description("Mark a folder as a repository, creating it where missing.")
    .action((options: NamedRepository) => initCommand(options, output));
  command("backup")
    .description(
      "Back a file, block device, image, NBD export, iSCSI LUN or Ceph image up. The repository is marked when it is new or holds only Cinder's backups.",
    )
    .requiredOption(
      "--source <volume>",
      "what to read: a file or block device with raw data, qcow2:PATH, vmdk:PATH, vhdx:PATH, vdi:PATH, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, iscsi://[USER@]HOST[:PORT]/IQN/LUN[?password-file=PATH], rbd:POOL/IMAGE[@SNAPSHOT][?conf=PATH&user=NAME&keyring=PATH]",
    )
    .option("--backing-root <folder...>", "folders where an image's backing files may be, beside its own folder")
    .option("--volume-id <uuid>", "id of the volume (default: the parent's, else a new one)", parseId)
    .option("--parent <backup-id>", "store only what has changed since this backup", parseId)
    .addOption(
      new Option("--compression <codec>", `how data is stored: ${compressions.join(", ")}`)
        .argParser(parseCodec)
        .default("zlib"),
    )
    .addOption(
      new Option("--zlib-encoder <name>", "what makes zlib streams; isal is many times as fast and needs libisal.so.2")
        .choices(zlibEncoders)
        .default("zlib"),
    )
    .option("--object-bytes <n>", "size of a stored piece before compression", parseBytes, 52_428_800)
    .option("--block-bytes <n>", "Size of the unit in which changes are detected.", parseBytes, 32_768)
    .action((options: Parameters<typeof backupCommand>[0]) => backupCommand(options, output, signal));
  command("list")
    .description("List the backups that a repository holds, from its objects alone.")
    .action((options: NamedRepository) => listCommand(options, output, signal));
  command("restore")
    .description(
      "Restore a backup, with all it builds on, to a file, block device, new image, NBD export, LUN or Ceph image. An existing target is overwritten, but for an image.",
    )
    .requiredOption("--backup <id>", "the backup to restore", parseId)
    .requiredOption(
      "--target <volume>",
      "what to write: a file or block device, qcow2:PATH[?size=BYTES] (a new image), nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, iscsi:// and rbd: as for backup; - writes the bytes to standard output",
    )
    .option(
      "--offset <n>",
      "Restore only data from this byte offset on, at the same offset in the target.",
      parseOffset,
    )
    .option("--length <n>", "Restore only this many bytes.", parseBytes)
    .action((options: Parameters<typeof restoreCommand>[0]) => restoreCommand(options, output, signal));
  command("verify")
    .description("Verify that a backup and its parents can be restored. Checks every hash, unless --quick.")
    .requiredOption("--backup <id>", "the backup to verify", parseId)
    .option("--quick", "compare listings and sizes with the metadata only")
    .action((options: Parameters<typeof verifyCommand>[0]) => verifyCommand(options, output, signal));
  command("squash")
    .description(
      "Make a full backup of an incremental one, with the same id, of what it builds on; its volume is not read.",
    )
    .requiredOption("--backup <id>", "the incremental backup", parseId)
    .addOption(
      new Option("--compression <codec>", `how what is merged is stored: ${compressions.join(", ")}`)
        .argParser(parseCodec)
        .default("zlib"),
    )
    .addOption(
      new Option("--zlib-encoder <name>", "what makes zlib streams; isal is many times as fast and needs libisal.so.2")
        .choices(zlibEncoders)
        .default("zlib"),
    )
    .option(
      "--object-bytes <n>",
      "size of a stored piece, where the full backup has none of one size",
      parseBytes,
      52_428_800,
    )
    .option("--remove-merged", "also remove the backups that it was built on, unless others build on them")
    .action((options: Parameters<typeof squashCommand>[0]) => squashCommand(options, output, signal));
  command("export")
    .description("Print the record with which Cinder or this service can import a backup.")
    .requiredOption("--backup <id>", "the backup to export", parseId)
    .action((options: Parameters<typeof exportCommand>[0]) => exportCommand(options, output, signal));
  command("import")
    .description(
      "Check a record that was exported elsewhere, show its backup, and keep it so that restore finds it by id.",
    )
    .requiredOption("--record <file>", "the backup_url, or the JSON around it; - reads standard input")
    .option("--service <name>", "the service that the record belongs to (default: the one named in the record)")
    .option("--dry-run", "Only check the record.")
    .action((options: Parameters<typeof importCommand>[0]) => importCommand(options, output, signal));
  command("rescan")
    .description("Rebuild the catalogue from the objects alone: every backup with its chain and record, parents first.")
    .action((options: NamedRepository) => rescanCommand(options, output, signal));
  command("rewrap")
    .description(
      "Rewrap the data keys of encrypted backups with the newest master key, so that older keys can be retired.",
    )
    .option("--all", "of every backup")
    .option("--backup <id>", "of this backup alone", parseId)
    .action((options: Parameters<typeof rewrapCommand>[0]) => rewrapCommand(options, output, signal));
  program.addHelpText("after", "\nExit status: 0 done, 1 failed or damaged, 2 wrong usage.");
  return program;
}

function parseBytes(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < 1) {
    throw new InvalidArgumentError("Expected a positive number of bytes.");
  }
  return value;
}

function parseOffset(text: string): number {
  return text === "0" ? 0 : parseBytes(text);
}

function parseCodec(text: string): Compression {
  try {
    return parseCompression(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

function parseId(text: string): string {
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/.test(text)) {
    throw new InvalidArgumentError("Expected a UUID in lower case.");
  }
  return text;
}

process.exitCode = await main(process.argv.slice(2));
