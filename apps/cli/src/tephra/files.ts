import { open, unlink } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { Writable } from "node:stream";
import type { ReadableStream } from "node:stream/web";
import type { AnswerOf, ListedFile } from "@tephra/wire";
import { type Command, InvalidArgumentError, Option } from "commander";
import { trustMachine } from "../machine-trust.ts";
import { type Client, reasonOf, UnreachableError } from "./client.ts";
import { resolveId } from "./names.ts";
import { formatBytes, renderFields, renderTable } from "./output.ts";
import { openSession } from "./session.ts";
import { OperationFailedError } from "./wait.ts";

type Kind = "backup" | "snapshot";

interface FilesOptions {
  partition?: number;
}

const partitionOption = (): Option =>
  new Option("--partition <number>", "of the disk; needed where several have a file system").argParser((text) => {
    if (!/^\d{1,5}$/.test(text)) throw new InvalidArgumentError("It must be a number.");
    return Number(text);
  });

/** What a backup or snapshot has inside. */
export function addFilesCommands(parent: Command, kind: Kind): void {
  const subject = `<${kind}>`;
  parent
    .command("partitions")
    .description(`The partitions of a ${kind}'s disk, and their file systems.`)
    .argument(subject, "id or name")
    .action((reference: string, _options: object, command: Command) => listPartitions(kind, reference, command));
  parent
    .command("files")
    .description(`The files in a folder of a ${kind}'s disk.`)
    .argument(subject, "id or name")
    .argument("[path]", "a folder of the disk", "/")
    .addOption(partitionOption())
    .action((reference: string, path: string, options: FilesOptions, command: Command) =>
      listFiles(kind, { reference, path, ...options }, command),
    );
  parent
    .command("get")
    .description(`Write a file of a ${kind}'s disk to a new file.`)
    .argument(subject, "id or name")
    .argument("<path>", "a file of the disk")
    .option("-o, --output <file>", "a new file; by default, one of the same name in the current folder")
    .addOption(partitionOption())
    .action((reference: string, path: string, options: FilesOptions & { output?: string }, command: Command) =>
      get(kind, { reference, path, ...options }, command),
    );
  parent
    .command("cat")
    .description(`Write a file of a ${kind}'s disk to the standard output.`)
    .argument(subject, "id or name")
    .argument("<path>", "a file of the disk")
    .addOption(partitionOption())
    .action((reference: string, path: string, options: FilesOptions, command: Command) =>
      cat(kind, { reference, path, ...options }, command),
    );
}

interface Asked extends FilesOptions {
  reference: string;
  path: string;
}

async function placeOf(client: Client, kind: Kind, reference: string): Promise<string> {
  return `/ops/${kind}s/${await resolveId(client, kind, reference)}`;
}

const queryOf = ({ path, partition }: Omit<Asked, "reference">, more: Record<string, string> = {}): string =>
  String(new URLSearchParams({ path, ...(partition !== undefined && { partition: String(partition) }), ...more }));

async function listPartitions(kind: Kind, reference: string, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const place = await placeOf(client, kind, reference);
  const answer = await client.get<AnswerOf<"GET /ops/backups/:id/partitions">>(`${place}/partitions`);
  const rows = answer.partitions.map((each) => [
    each.number,
    each.file_system,
    formatBytes(each.bytes),
    each.label,
    each.name,
    each.needs_recovery === null ? null : each.needs_recovery ? "in use" : "clean",
    each.problem,
  ]);
  print(answer, renderTable(["NUMBER", "FILE SYSTEM", "SIZE", "LABEL", "NAME", "STATE", "PROBLEM"], rows));
}

async function listFiles(kind: Kind, asked: Asked, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const place = await placeOf(client, kind, asked.reference);
  const files: ListedFile[] = [];
  for (let marker: string | null = "0"; marker !== null; ) {
    const page: AnswerOf<"GET /ops/backups/:id/files"> = await client.get(
      `${place}/files?${queryOf(asked, { marker })}`,
    );
    files.push(...page.files);
    marker = page.next_marker;
  }
  const rows = files.map((file) => [
    file.type,
    file.mode === null ? null : file.mode.toString(8).padStart(4, "0"),
    file.uid,
    file.gid,
    file.size,
    file.mtime,
    file.target === null ? file.name : `${file.name} -> ${file.target}`,
  ]);
  print({ files }, renderTable(["TYPE", "MODE", "UID", "GID", "BYTES", "MODIFIED", "NAME"], rows));
}

/** The bytes of a file, from the server of images that the service names. @throws OperationFailedError, UnreachableError */
async function fetchFile(
  client: Client,
  kind: Kind,
  { reference, ...file }: Asked,
): Promise<{ bytes: number; body: ReadableStream<Uint8Array> | null }> {
  const place = await placeOf(client, kind, reference);
  const url = await client.locate(`${place}/files/content?${queryOf(file)}`);
  if (url.startsWith("https:")) trustMachine();
  let response: Response;
  try {
    response = await fetch(url);
  } catch (cause) {
    throw new UnreachableError(`The server of images does not answer: ${reasonOf(cause)}`, { cause });
  }
  if (response.ok)
    return {
      bytes: Number(response.headers.get("content-length")),
      body: response.body as ReadableStream<Uint8Array> | null,
    };
  const text = await response.text().catch(() => "");
  throw new OperationFailedError(messageOf(text) ?? `the server of images refused it: ${response.status}`, null);
}

function messageOf(text: string): string | null {
  try {
    const [fault] = Object.values(JSON.parse(text) as Record<string, { message?: unknown }>);
    return typeof fault?.message === "string" ? fault.message : null;
  } catch {
    return null;
  }
}

/** @throws OperationFailedError when fewer bytes come than were said */
async function copyTo(
  { bytes, body }: Awaited<ReturnType<typeof fetchFile>>,
  write: (piece: Uint8Array) => Promise<unknown>,
): Promise<void> {
  let done = 0;
  try {
    for await (const piece of body ?? []) {
      await write(piece);
      done += piece.length;
    }
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw cause;
    throw new UnreachableError(`The server of images broke off: ${reasonOf(cause)}`, { cause });
  }
  if (done !== bytes) throw new OperationFailedError("the server of images sent fewer bytes than it said", null);
}

async function get(kind: Kind, asked: Asked & { output?: string }, command: Command): Promise<void> {
  const { client, print } = openSession(command);
  const { output, ...wanted } = asked;
  const path = output ?? basename(resolve("/", asked.path));
  const file = await open(path, "wx");
  try {
    const content = await fetchFile(client, kind, wanted);
    await copyTo(content, (piece) => file.writeFile(piece));
    await file.sync();
    print({ file: { path, bytes: content.bytes } }, renderFields({ path, bytes: content.bytes }));
  } catch (error) {
    await unlink(path).catch(() => {});
    throw error;
  } finally {
    await file.close();
  }
}

async function cat(kind: Kind, asked: Asked, command: Command): Promise<void> {
  const { client } = openSession(command);
  const content = await fetchFile(client, kind, asked);
  const out = Writable.toWeb(process.stdout).getWriter();
  await copyTo(content, (piece) => out.write(piece));
}
