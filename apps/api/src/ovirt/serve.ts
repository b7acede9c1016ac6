import { randomUUID } from "node:crypto";
import { actorOf } from "@tephra/control";
import { actAs } from "@tephra/control/process";
import { type ErrorRequestHandler, type Request, type RequestHandler, type Response, Router, raw } from "express";
import type { Context } from "../context.ts";
import { outageFault, unexpectedFault } from "../http/fault.ts";
import { parseJson } from "../http/json-body.ts";
import { assertRule, may } from "../http/policy.ts";
import { logFault } from "../http/request-log.ts";
import { throttledText } from "../http/throttle.ts";
import { type Address, addressOf, isBelow } from "./address.ts";
import { type Body, bodyBytesMax, malformed, noBody } from "./body.ts";
import type { Answer, Call, Route } from "./call.ts";
import { readJson, writeJson } from "./codec-json.ts";
import { readXml, writeXml } from "./codec-xml.ts";
import { type Fields, group, isList, type Root, reference, relationsOf } from "./element.ts";
import { BareStatus, faultOf, faultRoot, OvirtFault, refused } from "./faults.ts";
import { endedJobId } from "./fixed-ids.ts";
import { parseFollow } from "./follow.ts";
import { pkiRoutes } from "./pki.ts";
import { matchRoute, type RouteTable, routeTable } from "./route-table.ts";
import { signOnRoutes } from "./sign-on.ts";
import { openUsers, type SignedIn, type Users } from "./users.ts";
import { asVersionThree } from "./version-3.ts";

type Format = "xml" | "json";

declare module "express-serve-static-core" {
  interface Request {
    /** What is known of a request to this dialect when it is answered; set step by step. */
    ovirt?: { format: Format; isAction: boolean; address: Address | null };
  }
}

const challenge = { "www-authenticate": 'Basic realm="RESTAPI"' };

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A client's name for what it does has at most this many characters; a longer one is replaced. */
const correlationMax = 50;

function correlationOf(req: Request): string | null {
  const asked = req.get("correlation-id") ?? new URLSearchParams(req.url.split("?")[1]).get("correlation_id") ?? "";
  return /^[\x20-\x7e]+$/.test(asked) && asked.length <= correlationMax ? asked : null;
}

/** The format of the answer, by quality; XML where the client does not mind. @throws BareStatus 406 */
function formatOf(req: Request): Format {
  const chosen = req.accepts(["application/xml", "application/json"]);
  if (chosen === false) throw new BareStatus(406);
  return chosen === "application/json" ? "json" : "xml";
}

/** `Authorization: Basic` or `Bearer`. @throws BareStatus 401 */
async function signIn(users: Users, req: Request, requestId: string): Promise<SignedIn> {
  const [scheme = "", credentials = ""] = (req.get("authorization") ?? "").trim().split(/\s+/);
  let found: SignedIn | null = null;
  if (scheme.toLowerCase() === "bearer") found = await users.byToken(credentials, requestId);
  if (scheme.toLowerCase() === "basic") {
    const text = Buffer.from(credentials, "base64").toString();
    const colon = text.indexOf(":");
    const [name, password] = [text.slice(0, Math.max(0, colon)), text.slice(colon + 1)];
    if (colon > 0) {
      found = await users.byPassword(name, password, { address: req.socket.remoteAddress ?? "", requestId });
    }
  }
  if (!found) throw new BareStatus(401, challenge);
  return found;
}

const readRaw = raw({ type: () => true, limit: bodyBytesMax, inflate: false });

const readBytes = (req: Request, res: Response): Promise<void> =>
  new Promise((resolve, reject) => readRaw(req, res, (error?: unknown) => (error ? reject(error) : resolve())));

/** The body, by its content type; without one it is XML. A body of GET is ignored: some clients send one. */
async function bodyOf(req: Request, res: Response): Promise<Body> {
  if (req.method === "GET" || req.method === "HEAD") return noBody;
  await readBytes(req, res);
  if (!Buffer.isBuffer(req.body) || req.body.length === 0) return noBody;
  const type = req.get("content-type")?.split(";")[0]?.trim().toLowerCase() ?? "application/xml";
  if (/^application\/(?:[\w.-]+\+)?json$/.test(type)) return readJson(parseJson(req.body));
  if (!/^(?:application|text)\/(?:[\w.-]+\+)?xml$/.test(type)) {
    throw new OvirtFault(415, "Unsupported Media Type", [`The content type ${type.slice(0, 64)} cannot be read`]);
  }
  let text: string;
  try {
    text = utf8.decode(req.body);
  } catch {
    throw malformed("The body is not UTF-8");
  }
  return text.trim() === "" ? noBody : readXml(text);
}

function goneOf(res: Response): AbortSignal {
  const controller = new AbortController();
  res.once("close", () => controller.abort());
  return controller.signal;
}

/** `Expect: 201-created`; the SDK of version 3 sends it under two names. */
const expects = (req: Request, what: string): boolean =>
  [req.get("expect"), req.get("x-ovirt-expect")].some((header) => header?.toLowerCase().includes(what) === true);

function endBody(req: Request, res: Response, status: number, root: Root): void {
  const { format, address } = req.ovirt ?? { format: "xml", address: null };
  const shownRoot = address?.version === 3 ? asVersionThree(root) : root;
  const prefix = address?.prefix ?? "";
  const text = format === "json" ? writeJson(shownRoot, prefix) : writeXml(shownRoot, prefix);
  res.setHeader("content-type", format === "json" ? "application/json" : "application/xml;charset=UTF-8");
  res.setHeader("cache-control", "no-cache");
  res.vary("Accept");
  res.setHeader("content-length", Buffer.byteLength(text));
  res.statusCode = status;
  res.end(text);
}

/** An action that was done: its job, and how far it is. Every action of the engine has a job: that of an operation, or one that has ended. */
function actionRoot(job: string | null, isAsync: boolean): Root {
  const fields: Fields = {
    ...(isAsync && { async: true }),
    job: reference("jobs", job ?? endedJobId()),
    status: isAsync ? "in_progress" : "complete",
  };
  return { name: "action", value: group(fields) };
}

/** Links of an element, but for templates (RFC 8288). */
function linkHeader(req: Request, { value }: Root): string {
  const start = new URL(req.base).origin + (req.ovirt?.address?.prefix ?? "");
  const links = isList(value) ? [] : relationsOf(value).links.filter(([, path]) => !path.includes("{"));
  return links.map(([rel, path]) => `<${start}${path}>; rel=${rel}`).join(", ");
}

function endAnswer(req: Request, res: Response, answer: Answer, isAsync: boolean): void {
  if (answer.kind !== "created") {
    if (answer.kind === "shown" && answer.inHeader) res.setHeader("link", linkHeader(req, answer.root));
    const root = answer.kind === "shown" ? answer.root : actionRoot(answer.job, isAsync);
    endBody(req, res, answer.kind === "done" && isAsync ? 202 : 200, root);
    return;
  }
  const { name, element, isPending } = answer;
  const fields = { ...element.fields, ...(isPending && { creation_status: "in_progress" }) };
  const links = [...(element.links ?? []), ...(isPending ? ["creation_status"] : [])];
  res.setHeader("location", new URL(req.base).origin + (req.ovirt?.address?.prefix ?? "") + (element.path ?? ""));
  endBody(req, res, isPending ? 202 : 201, { name, value: { ...element, links, fields } });
}

/** Everything from the address to the answer, in the order in which errors are told: version, login, format, route, rule, body. */
async function serve(context: Context, users: Users, table: RouteTable, req: Request, res: Response): Promise<void> {
  const correlation = correlationOf(req);
  const known: NonNullable<Request["ovirt"]> = { format: "xml", isAction: false, address: null };
  req.ovirt = known;
  res.setHeader("correlation-id", correlation ?? randomUUID());
  const address = addressOf(req, new URL(req.base).pathname.replace(/\/$/, ""));
  if (!address) throw new BareStatus(404);
  known.address = address;
  const { principal } = await signIn(users, req, correlation ?? String(req.id));
  known.format = formatOf(req);
  const retryAfter = await context.throttle(principal, req.method);
  if (retryAfter !== null) throw new OvirtFault(429, "Operation Failed", [throttledText], { retryAfter });
  const { route, params } = matchRoute(table, req.method, address.segments);
  const [method, , rule, handle] = route;
  known.isAction = method === "ACTION";
  if (!may(principal, rule)) throw refused(["permission", "User is not authorized to perform this action."]);
  const body = await bodyOf(req, res);
  const { parameters } = address;
  const isAsync = parameters.flag("async") ?? (body.boolean("async") || expects(req, "202-accepted"));
  const call: Call = {
    principal,
    version: address.version,
    params,
    parameters,
    body,
    follow: parseFollow(parameters.text("follow")),
    allContent: parameters.flag("all_content") ?? /^true$/i.test(req.get("all-content")?.trim() ?? ""),
    waits: expects(req, "201-created"),
    gone: goneOf(res),
  };
  const answer = await actAs(actorOf(principal), () => handle(context, call));
  endAnswer(req, res, answer, isAsync);
}

/** Renders every error of this dialect, also those that were thrown before it was asked; passes on those of other paths. */
export function answerOvirtErrors(context: Context): ErrorRequestHandler {
  return (error: unknown, req, res, next) => {
    if (!isBelow(req.path)) return next(error);
    if (res.headersSent) {
      res.destroy();
      return;
    }
    const fault = faultOf(error);
    if (fault.status === 503) logFault(context, req, outageFault, error);
    else if (fault.status >= 500) logFault(context, req, unexpectedFault, error);
    if (fault instanceof BareStatus) {
      res.writeHead(fault.status, { ...fault.headers, "content-length": 0 }).end();
      return;
    }
    if (fault.retryAfter !== undefined) res.setHeader("retry-after", String(fault.retryAfter));
    endBody(req, res, fault.status, faultRoot(fault, req.ovirt?.isAction === true));
  };
}

/**
 * oVirt's API at `/ovirt-engine/api` and `/api`, and how clients come to trust it and log in. Other paths pass.
 *
 * @throws when a rule is not in the policy table
 */
export function ovirtRouter(context: Context, routes: readonly Route[]): Router {
  for (const [method, path, rule] of routes) assertRule(rule, `${method} ${path}`);
  const users = openUsers(context.config, context.database);
  const table = routeTable(routes);
  const answerApi: RequestHandler = (req, res, next) =>
    isBelow(req.path) ? serve(context, users, table, req, res) : next();
  const router = Router({ caseSensitive: true, strict: true });
  router.use(pkiRoutes(context), signOnRoutes(context, users), answerApi);
  return router;
}
