import type { IncomingMessage } from "node:http";
import { pipeline } from "node:stream/promises";
import { actorOf, getDefaultQuota, getQuota, type QuotaLine, resetQuota, seesAll, setQuota } from "@tephra/control";
import { actAs } from "@tephra/control/process";
import { passedOn } from "@tephra/openstack";
import type { Request, RequestHandler, Response } from "express";
import { z } from "zod";
import type { Context } from "../../context.ts";
import { negotiate, since } from "../../openstack/microversions.ts";
import { cinderOf, passOn } from "./see-volume.ts";

/*
 * The endpoint of a Cinder: what is not about backups is that Cinder's, and goes on to it as it is. No token is asked for here.
 */

/** Ours: the service's own routes, and those of backups. */
const own = /^\/(?:(?:ops|console|metrics|healthz|readyz)(?:\/|$)|v3\/(?:[^/]+\/)?backups(?:\/|$))/;
const newVolume = /^\/v3\/(?:[^/]+\/)?volumes$/;
const quotaSet = /^\/v3\/(?:[^/]+\/)?os-quota-sets\/([^/]+?)(\/defaults)?$/;
const usedLimits = /^\/v3\/(?:[^/]+\/)?limits$/;

/** Of a request for a volume that may be one from a backup, in bytes: a longer one passes unread. */
const readMax = 64 * 1024;
/** Of an answer that is changed. */
const answerMax = 2 ** 20;

interface Forwarded {
  body?: Uint8Array;
  /** The answer is to be read here. */
  plain?: boolean;
}

export function forwardRest(context: Context): RequestHandler {
  return async (req, res, next) => {
    // As the router of our own routes sees it.
    const path = req.path.replace(/\/{2,}/g, "/").replace(/\.json$/, "");
    if (own.test(path)) return next();
    if (req.method === "POST" && newVolume.test(path)) {
      const body = await shortBody(req);
      if (body !== null && namesBackup(body)) {
        req.body = body;
        return next();
      }
      return send(res, await ask(context, req, res, body === null ? {} : { body }));
    }
    const [, project, defaults] = quotaSet.exec(path) ?? [];
    if (project !== undefined) return quotas(context, req, res, { project, isDefaults: defaults !== undefined });
    if (req.method === "GET" && usedLimits.test(path)) return limits(context, req, res);
    return send(res, await ask(context, req, res));
  };
}

/** @throws Refusal 503 */
function ask(context: Context, req: Request, res: Response, { body, plain }: Forwarded = {}): Promise<IncomingMessage> {
  const gone = new AbortController();
  res.once("close", () => gone.abort());
  const path = [req.get("x-forwarded-for"), req.socket.remoteAddress].filter((part) => part !== undefined);
  return passOn(
    cinderOf(context).forward({
      method: req.method,
      path: req.originalUrl,
      rawHeaders: req.rawHeaders,
      set: {
        "x-forwarded-for": path.join(", "),
        "x-openstack-request-id": String(req.id),
        // Cookies are the console's tokens, which Cinder must not see; its own clients send none.
        cookie: null,
        ...(plain && { "accept-encoding": null }),
      },
      body: body ?? req,
      signal: gone.signal,
    }),
  );
}

/** Passes an answer on. What was sent cannot be taken back: if the rest does not come, the connection is broken off. */
async function send(res: Response, answer: IncomingMessage): Promise<void> {
  begin(res, answer, {});
  await pipeline(answer, res).catch(() => res.destroy());
}

function begin(res: Response, answer: IncomingMessage, set: Readonly<Record<string, string | null>>): void {
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const { statusCode = 502, statusMessage, rawHeaders } = answer;
  res.writeHead(statusCode, statusMessage, passedOn(rawHeaders, set));
}

/** All of a body that has a length and is short; null for any other, of which nothing was read. */
async function shortBody(req: Request): Promise<Buffer | null> {
  const length = Number(req.get("content-length") ?? Number.NaN);
  if (!(length <= readMax)) return null;
  const pieces: Buffer[] = [];
  for await (const piece of req) pieces.push(piece);
  return Buffer.concat(pieces);
}

function namesBackup(body: Buffer): boolean {
  try {
    const { volume } = JSON.parse(body.toString("utf8"));
    return (volume?.backup_id ?? null) !== null;
  } catch {
    // Cinder says what is wrong with it.
    return false;
  }
}

/** An answer as JSON; null when it is none, or an error, or empty: then it has been passed on. */
async function changeable(res: Response, answer: IncomingMessage): Promise<unknown> {
  const isJson = /^application\/json/.test(answer.headers["content-type"] ?? "");
  const length = Number(answer.headers["content-length"] ?? Number.NaN);
  if (answer.statusCode !== 200 || !isJson || !(length > 0 && length <= answerMax)) {
    await send(res, answer);
    return null;
  }
  const pieces: Buffer[] = [];
  for await (const piece of answer) pieces.push(piece);
  return JSON.parse(Buffer.concat(pieces).toString("utf8"));
}

function sendChanged(res: Response, answer: IncomingMessage, document: unknown): void {
  const body = Buffer.from(JSON.stringify(document));
  begin(res, answer, { "content-length": String(body.length) });
  res.end(body);
}

const QuotaSet = z.object({ quota_set: z.record(z.string(), z.unknown()) });
const UsedLimits = z.object({ limits: z.looseObject({ absolute: z.record(z.string(), z.unknown()) }) });
const ourKeys = ["backups", "backup_gigabytes"] as const;

/** Of the body of a change that Cinder has accepted, so its values are integers from -1 on, also as strings. */
function wanted(body: Buffer): Partial<Record<(typeof ourKeys)[number], number>> {
  const { quota_set: set } = QuotaSet.parse(JSON.parse(body.toString("utf8")));
  return Object.fromEntries(ourKeys.flatMap((key) => (key in set ? [[key, Number(set[key])]] : [])));
}

/**
 * Quotas of a project: Cinder decides who may, and has those of volumes; those of backups are ours. A change goes to Cinder first, whole:
 * what it refuses changes nothing here.
 */
async function quotas(
  context: Context,
  req: Request,
  res: Response,
  { project, isDefaults }: { project: string; isDefaults: boolean },
): Promise<void> {
  const { database, config } = context;
  const body = req.method === "PUT" ? await shortBody(req) : null;
  const answer = await ask(context, req, res, { plain: true, ...(body !== null && { body }) });
  const isDone = (answer.statusCode ?? 500) < 300;
  if (req.method === "DELETE" && isDone) await asCaller(context, req, () => resetQuota(database, project));
  const document = await changeable(res, answer);
  if (document === null) return;
  if (body !== null) await asCaller(context, req, () => setQuota(database, config, project, wanted(body)));
  const parsed = QuotaSet.safeParse(document);
  if (!parsed.success) return sendChanged(res, answer, document);
  const set = parsed.data.quota_set;
  const lines = await getQuota(database, config, project);
  const defaults = isDefaults ? await getDefaultQuota(database, config) : null;
  for (const key of ourKeys) set[key] = defaults === null ? quotaOf(lines[key], set[key]) : defaults[key];
  return sendChanged(res, answer, { ...parsed.data, quota_set: set });
}

/** In the form that Cinder has: with the use, or the limit alone. */
const quotaOf = ({ limit, inUse }: QuotaLine, theirs: unknown): unknown =>
  typeof theirs === "object" && theirs !== null ? { ...theirs, limit, in_use: inUse, reserved: 0 } : limit;

async function asCaller(context: Context, req: Request, work: () => Promise<unknown>): Promise<void> {
  const principal = await context.authenticate(req.get("x-auth-token"), String(req.id));
  await actAs(actorOf(principal), work);
}

/** Limits and use: Cinder's, and of backups ours. */
async function limits(context: Context, req: Request, res: Response): Promise<void> {
  const answer = await ask(context, req, res, { plain: true });
  const document = await changeable(res, answer);
  if (document === null) return;
  const parsed = UsedLimits.safeParse(document);
  if (!parsed.success) return sendChanged(res, answer, document);
  const principal = await context.authenticate(req.get("x-auth-token"), String(req.id));
  const query = new URL(req.originalUrl, "http://localhost").searchParams;
  const named = query.get("project_id") ?? query.get("tenant_id");
  const isOther = seesAll(principal) && negotiate(req.get("openstack-api-version")) >= since.limitsOfOthers;
  const project = isOther && named !== null ? named : principal.projectId;
  const { backups, backup_gigabytes: gigabytes } = await getQuota(context.database, context.config, project);
  Object.assign(parsed.data.limits.absolute, {
    maxTotalBackups: backups.limit,
    maxTotalBackupGigabytes: gigabytes.limit,
    totalBackupsUsed: backups.inUse,
    totalBackupGigabytesUsed: gigabytes.inUse,
  });
  return sendChanged(res, answer, parsed.data);
}
