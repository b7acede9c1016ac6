import { type Command, Option } from "commander";
import { ApiError, type Caller, openCaller } from "./client.ts";
import { chooseByName, isUuid } from "./names.ts";
import { openSession, type Session } from "./session.ts";

/** Where the service's API of oVirt is (docs/ovirt.md). */
const root = "/ovirt-engine/api";
const variables = { user: "TEPHRA_OVIRT_USER", password: "TEPHRA_OVIRT_PASSWORD" } as const;

/** Who speaks to oVirt's API: it has users of its own. */
export interface OvirtSession extends Pick<Session, "print" | "waiting"> {
  /** Paths are those below oVirt's API. */
  readonly api: Caller;
}

export const addOvirtOptions = (command: Command): Command =>
  command
    .addOption(new Option("--user <name>", "user of oVirt's API, such as admin@internal").env(variables.user))
    .addOption(
      new Option("--password <password>", "better given in the environment: others see arguments").env(
        variables.password,
      ),
    );

/** @throws when it is not said who the user is */
export function openOvirtSession(command: Command): OvirtSession {
  const { url, user, password } = command.optsWithGlobals<{ url: string; user?: string; password?: string }>();
  if (user === undefined || password === undefined) {
    throw new Error(`oVirt's API has users of its own: ${variables.user} and ${variables.password} are needed.`);
  }
  const authorization = `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
  const headers = { authorization, accept: "application/json" };
  const { print, waiting } = openSession(command);
  return { print, waiting, api: openCaller({ url: url.replace(/\/+$/, "") + root, headers, faultOf }) };
}

/** `{"reason": "…", "detail": "[…]"}`, of an action below `fault`; many statuses have no body. */
function faultOf(status: number, text: string): ApiError {
  const told = (message: string, code = "http_error") => new ApiError({ code, status, message });
  if (status === 401) return told("The user or the password of oVirt's API is wrong.", "unauthorized");
  if (status === 404 && text === "")
    return told("There is no such object, or the API is not switched on.", "not_found");
  try {
    const answer = JSON.parse(text) as Fault & { fault?: Fault };
    const { reason, detail } = answer.fault ?? answer;
    if (typeof detail === "string") return told(detail.replace(/^\[(.*)\]$/s, "$1"), codeOf(reason));
  } catch {
    // No JSON: its text is told.
  }
  return told(`status ${status}: ${text.trim().slice(0, 200)}`);
}

interface Fault {
  reason?: unknown;
  detail?: unknown;
}

/** `Operation Failed` → `operation_failed` */
const codeOf = (reason: unknown): string =>
  typeof reason === "string" ? reason.toLowerCase().replaceAll(/[^a-z]+/g, "_") : "http_error";

/** All values are texts. */
export interface Named {
  id: string;
  name: string;
}

/** The items of a list, which is empty where it has none. */
export async function listItems<Item>(api: Caller, path: string, item: string): Promise<Item[]> {
  return (await api.get<Record<string, Item[] | undefined>>(path))[item] ?? [];
}

/** The object of that id, or the one of that name. @throws NameError; ApiError 404 for an unknown id */
export async function findNamed<Item extends Named>(
  api: Caller,
  kind: { path: string; item: string; shown: string },
  given: string,
): Promise<Item> {
  if (isUuid(given)) return api.get<Item>(`${kind.path}/${given}`);
  return chooseByName(kind.shown, given, await listItems<Item>(api, kind.path, kind.item));
}
