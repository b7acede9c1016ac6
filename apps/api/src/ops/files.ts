import { type FilesSubject, imageServerAuthority, openFiles } from "@tephra/control";
import { type HttpClient, openHttpClient } from "@tephra/openstack";
import { requests } from "@tephra/wire";
import type { Context } from "../context.ts";
import { Refusal } from "../http/refusals.ts";
import { defineOps, type OpsAnswer, type OpsCall } from "./serve.ts";

/** How long a server of images may take to look at a disk. */
const answerMs = 90_000;
/** A transfer may end between the question for its address and that for files. */
const attempts = 3;

type Query = Readonly<Record<string, string | number | undefined>>;
type Part = "partitions" | "list" | "content";

const notYet = (): Refusal => new Refusal(503, "It is being opened. Try again later.", { retryAfter: 5 });

/** Of each configuration of certificates, one: it keeps connections. */
const clients = new WeakMap<Context, HttpClient>();

function clientOf(context: Context): HttpClient {
  const known = clients.get(context) ?? openHttpClient(imageServerAuthority(context.config));
  clients.set(context, known);
  return known;
}

async function addressOf(
  { database, config }: Context,
  { principal }: OpsCall,
  subject: FilesSubject,
  part: Part,
  query: Query,
) {
  const address = await openFiles(database, config, principal, subject);
  if (address === null) throw notYet();
  const asked = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value !== undefined) asked.set(key, String(value));
  return `${address}/${part}?${asked}`;
}

/** What the server of images tells: this process does not read volumes. */
async function ask(context: Context, call: OpsCall, subject: FilesSubject, part: Part): Promise<OpsAnswer> {
  for (let attempt = 1; ; attempt++) {
    const url = await addressOf(context, call, subject, part, call.query as Query);
    let status: number;
    let text: string;
    try {
      const answer = await clientOf(context).ask(url, { signal: AbortSignal.timeout(answerMs) });
      [status, text] = [answer.status, await answer.text()];
    } catch (error) {
      context.log.warn({ err: error }, "a server of images does not answer");
      throw new Refusal(503, "The server of images does not answer. Try again later.", { retryAfter: 5 });
    }
    if (status === 200) return { status, body: JSON.parse(text) };
    if (status === 403 && attempt < attempts) continue;
    throw refusalOf(status, text);
  }
}

function refusalOf(status: number, text: string): Refusal {
  if ([400, 404, 409, 422].includes(status)) {
    try {
      const [fault] = Object.values(JSON.parse(text) as Record<string, { message?: unknown }>);
      if (typeof fault?.message === "string") return new Refusal(status, fault.message);
    } catch {
      // Of an earlier release, which does not read files: its words are not for our callers.
    }
  }
  return new Refusal(503, "The server of images could not read it. Try again later.", { retryAfter: 5 });
}

/** The routes of one kind of subject. */
const filesOf = (subjectOf: (id: string) => FilesSubject) => {
  const subject = ({ params }: OpsCall): FilesSubject => subjectOf(params["id"] ?? "");
  return {
    partitions: defineOps({
      handle: (context, call) => ask(context, { ...call, query: {} }, subject(call), "partitions"),
    }),
    list: defineOps({
      ...requests["GET /ops/backups/:id/files"],
      handle: (context, call) => ask(context, call, subject(call), "list"),
    }),
    /** The caller is sent to the server of images, whose address is the right to the disk for as long as it is open. */
    content: defineOps({
      ...requests["GET /ops/backups/:id/files/content"],
      handle: async (context, call) => ({
        status: 307,
        location: await addressOf(context, call, subject(call), "content", call.query),
      }),
    }),
  };
};

export const opsFiles = {
  ofBackups: filesOf((backupId) => ({ backupId })),
  ofSnapshots: filesOf((snapshotId) => ({ snapshotId })),
};
