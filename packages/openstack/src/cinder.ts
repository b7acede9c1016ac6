import { channel } from "node:diagnostics_channel";
import type { IncomingMessage } from "node:http";
import { z } from "zod";
import { openForward, type RequestToForward } from "./forward.ts";
import { type HttpClient, openHttpClient } from "./http-client.ts";
import { type KeystoneSettings, KeystoneUnavailableError, openKeystone, reasonOf, type Token } from "./keystone.ts";

/** Where a Cinder is, and as whom it is asked where no user asks. */
export interface CinderSettings {
  /** With or without `/v3` and a project at the end; null: from the catalogue. */
  url: string | null;
  /** Of the catalogue; null: any. */
  region: string | null;
  interface: "public" | "internal" | "admin";
  service: KeystoneSettings;
}

/** Cinder does not answer, or answers with 5xx or what no Cinder answers. Waiting may help. */
export class CinderUnavailableError extends Error {
  override get name(): string {
    return "CinderUnavailableError";
  }
}

/** Cinder's refusal, in its own words. */
export class CinderRefusedError extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
  override get name(): string {
    return "CinderRefusedError";
  }
}

/** Attachments with a mode need 3.54 (Stein); a name and metadata together are a filter since 3.31. */
const microversion = "3.54";

/** Longest answer that is read: a page of volumes has about 2 MB. */
const answerBytesMax = 8 * 2 ** 20;
const pageLength = 100;
/** Less than a worker waits for the answer of a place. */
const probeTimeoutMs = 8_000;
/** Of a call in which Cinder asks the storage. */
const attachTimeoutMs = 180_000;

const text = z.string();

const Volume = z.object({
  id: z.guid(),
  name: text.nullish(),
  description: text.nullish(),
  size: z.int().min(1),
  status: text,
  availability_zone: text.nullish(),
  bootable: z.union([z.boolean(), text]).transform((value) => value === true || value === "true"),
  metadata: z.record(text, text),
  volume_image_metadata: z.record(text, text).optional(),
  volume_type: text.nullish(),
  multiattach: z.boolean().default(false),
  encrypted: z.boolean().default(false),
  created_at: text,
  user_id: text.nullish(),
  "os-vol-tenant-attr:tenant_id": text.nullish(),
  /** `HOST@BACKEND#POOL`, which only admins see, as they see the id that the storage knows a migrated volume by. */
  "os-vol-host-attr:host": text.nullish(),
  "os-vol-mig-status-attr:name_id": z.guid().nullish(),
  migration_status: text.nullish(),
  attachments: z.array(z.object({ attachment_id: text.nullish() })).default([]),
});
export type CinderVolume = z.infer<typeof Volume>;

const Snapshot = z.object({ id: z.guid(), volume_id: z.guid(), status: text, size: z.int(), created_at: text });
export type CinderSnapshot = z.infer<typeof Snapshot>;

const Attachment = z.object({
  id: z.guid(),
  status: text,
  instance: text.nullish(),
  volume_id: z.guid(),
  attach_mode: text.nullish(),
  connection_info: z.record(text, z.unknown()).nullish(),
});
/** `connection_info` may hold secrets: it is never stored or logged. */
export type CinderAttachment = z.infer<typeof Attachment>;

const Messages = z.object({ messages: z.array(z.object({ user_message: text })) });

const faultText = z.record(text, z.object({ message: text }));

type Method = "GET" | "POST" | "PUT" | "DELETE";

interface Call {
  method: Method;
  /** Below the project: `/volumes`. */
  path: string;
  body?: unknown;
  timeoutMs?: number;
  version?: string;
}

/** Calls on behalf of one token, in its project. All throw CinderRefusedError and CinderUnavailableError. */
export interface CinderProject {
  volume(id: string): Promise<CinderVolume>;
  /** All that Cinder says of a volume, in the form of the API's version. */
  shownVolume(id: string): Promise<Record<string, unknown>>;
  snapshot(id: string): Promise<CinderSnapshot>;
  /** All volumes that fit, of all projects if wanted; the oldest first. */
  volumes(filter: { name?: string; metadata: Record<string, string>; allProjects?: boolean }): Promise<CinderVolume[]>;
  /** Whether volumes can be listed, within 8 s. */
  probe(): Promise<void>;
  createVolume(volume: Record<string, unknown>): Promise<CinderVolume>;
  /** One that is gone is success. */
  deleteVolume(id: string): Promise<void>;
  updateVolume(id: string, changes: { name?: string | null; description?: string | null }): Promise<void>;
  setMetadata(id: string, metadata: Record<string, string>): Promise<void>;
  /** A key that is not there is success. */
  deleteMetadata(id: string, key: string): Promise<void>;
  action(id: string, action: Record<string, unknown>): Promise<void>;
  /** What Cinder tells the user about a resource, newest first. */
  messages(resourceId: string): Promise<string[]>;
  /** Without a connector it only reserves the volume. */
  attach(volumeId: string, mode: "ro" | "rw", connector?: Record<string, unknown>): Promise<CinderAttachment>;
  connect(attachmentId: string, connector: Record<string, unknown>): Promise<CinderAttachment>;
  complete(attachmentId: string): Promise<void>;
  /** Null when there is none of that id. */
  attachment(id: string): Promise<CinderAttachment | null>;
  attachmentsOf(volumeId: string): Promise<CinderAttachment[]>;
  /** One that is gone is success. */
  detach(attachmentId: string): Promise<void>;
}

/** A Cinder, as its service user and as its users. */
export interface Cinder {
  /** Sends a request on as it is, below the URL that has Cinder's versions. CinderUnavailableError where there is no answer. */
  forward(request: RequestToForward): Promise<IncomingMessage>;
  /** In the service project. */
  readonly service: CinderProject;
  /** With a user's own token, which is passed on and not kept. `version`: of the API, such as `3.70`; absent: what is needed here. */
  as(token: string, projectId: string, version?: string): CinderProject;
}

const points = channel("tephra:point");

/** Reads at most `answerBytesMax`. */
async function readLimited(response: Awaited<ReturnType<HttpClient["ask"]>>): Promise<string> {
  const pieces: Uint8Array[] = [];
  let length = 0;
  for await (const piece of response.body ?? []) {
    length += piece.length;
    if (length > answerBytesMax)
      throw new CinderUnavailableError(`Cinder's answer has more than ${answerBytesMax} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

function parse(answer: string): unknown {
  try {
    return answer === "" ? null : JSON.parse(answer);
  } catch (cause) {
    throw new CinderUnavailableError("Cinder's answer is not JSON", { cause });
  }
}

/** The words of a refusal: `{"badRequest": {"message": …}}`, or of Keystone's middleware. */
function wordsOf(status: number, answer: string): string {
  try {
    const [fault] = Object.values(faultText.parse(JSON.parse(answer)));
    if (fault) return fault.message;
  } catch {
    // Not Cinder's form.
  }
  return `Cinder answered ${status}`;
}

const versionPart = /\/v[23](?:\/[^/]*)?\/?$/;
const withoutProject = (url: string): string => `${url.replace(versionPart, "").replace(/\/+$/, "")}/v3`;

function urlInCatalogue(token: Token, settings: CinderSettings): string {
  for (const type of ["block-storage", "volumev3", "volumev2", "volume"]) {
    const endpoints = token.catalog.filter((service) => service.type === type).flatMap((service) => service.endpoints);
    const found = endpoints.find(
      (endpoint) =>
        endpoint.interface === settings.interface &&
        (settings.region === null || endpoint.region_id === settings.region),
    );
    if (found) return found.url;
  }
  const where = settings.region === null ? "" : ` in region ${settings.region}`;
  throw new CinderUnavailableError(`Keystone's catalogue has no ${settings.interface} endpoint of Cinder${where}`);
}

/** Opens a Cinder. Asks nothing yet. */
export function openCinder(settings: CinderSettings): Cinder {
  const client = openHttpClient(settings.service.ca);
  const forward = openForward(settings.service.ca);
  const keystone = openKeystone(settings.service);

  const login = async (): Promise<{ text: string; token: Token }> => {
    try {
      return await keystone.current();
    } catch (error) {
      if (!(error instanceof KeystoneUnavailableError)) throw error;
      throw new CinderUnavailableError(error.message, { cause: error });
    }
  };
  const base = async (): Promise<string> =>
    withoutProject(settings.url ?? urlInCatalogue((await login()).token, settings));

  const ask = async (token: string, projectId: string, call: Call): Promise<{ status: number; answer: string }> => {
    const { method, path, body, timeoutMs = settings.service.timeout_ms, version = microversion } = call;
    const url = `${await base()}/${projectId}${path}`;
    const headers = { "x-auth-token": token, "openstack-api-version": `volume ${version}`, accept: "application/json" };
    try {
      const response = await client.ask(url, {
        method,
        headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        redirect: "manual",
        signal: AbortSignal.timeout(timeoutMs),
      });
      return { status: response.status, answer: await readLimited(response) };
    } catch (cause) {
      if (cause instanceof CinderUnavailableError) throw cause;
      throw new CinderUnavailableError(`Cinder did not answer: ${reasonOf(cause)}`, { cause });
    }
  };

  const settle = ({ status, answer }: { status: number; answer: string }): unknown => {
    if (status >= 200 && status < 300) return parse(answer);
    if (status >= 400 && status < 500) throw new CinderRefusedError(status, wordsOf(status, answer));
    throw new CinderUnavailableError(`Cinder answered ${status}`);
  };

  const asService = async (call: Call): Promise<unknown> => {
    for (let attempt = 1; ; attempt += 1) {
      const { text: mine, token } = await login();
      const replied = await ask(mine, token.project?.id ?? "", call);
      if (replied.status !== 401 || attempt > 1) return settle(replied);
      // Revoked, or Keystone has new keys.
      keystone.refused(mine);
    }
  };

  return {
    service: projectOf(asService),
    as: (token, projectId, version = microversion) =>
      projectOf(async (call) => settle(await ask(token, projectId, { ...call, version }))),
    async forward(request) {
      const origin = (await base()).replace(/\/v3$/, "");
      return forward(origin, request).catch((cause: unknown) => {
        throw new CinderUnavailableError(`Cinder did not answer: ${reasonOf(cause)}`, { cause });
      });
    },
  };
}

const named = (name: string, schema: z.ZodType): z.ZodType => z.object({ [name]: schema });

function projectOf(send: (call: Call) => Promise<unknown>): CinderProject {
  /** `name` is that of the points before the call is sent and when it has been answered. */
  const call = async (name: string, request: Call): Promise<unknown> => {
    points.publish(`cinder.${name}`);
    const answer = await send(request);
    points.publish(`cinder.${name}.answered`);
    return answer;
  };
  const read = async <Schema extends z.ZodType>(name: string, schema: Schema, key: string, request: Call) => {
    const parsed = named(key, schema).safeParse(await call(name, request));
    if (parsed.success) return (parsed.data as Record<string, z.infer<Schema>>)[key] as z.infer<Schema>;
    const issue = parsed.error.issues[0];
    throw new CinderUnavailableError(`Cinder's answer has no proper ${issue?.path.join(".")}: ${issue?.message}`);
  };
  const unlessGone = async <Result>(answer: Promise<Result>): Promise<Result | null> =>
    answer.catch((error: unknown) => {
      if (error instanceof CinderRefusedError && error.status === 404) return null;
      throw error;
    });
  return {
    volume: (id) => read("show-volume", Volume, "volume", { method: "GET", path: `/volumes/${id}` }),
    shownVolume: (id) =>
      read("show-volume", z.record(text, z.unknown()), "volume", { method: "GET", path: `/volumes/${id}` }),
    snapshot: (id) => read("show-snapshot", Snapshot, "snapshot", { method: "GET", path: `/snapshots/${id}` }),
    async volumes({ name, metadata, allProjects = false }) {
      const found: CinderVolume[] = [];
      for (let marker: string | null = null; ; ) {
        const query = new URLSearchParams({
          limit: String(pageLength),
          metadata: JSON.stringify(metadata),
          ...(name !== undefined && { name }),
          ...(allProjects && { all_tenants: "1" }),
          ...(marker !== null && { marker }),
        });
        const path = `/volumes/detail?${query}`;
        const page: CinderVolume[] = await read("list-volumes", z.array(Volume), "volumes", { method: "GET", path });
        found.push(...page);
        marker = page.at(-1)?.id ?? null;
        if (page.length < pageLength) break;
      }
      const keyOf = (volume: CinderVolume) => `${volume.created_at} ${volume.id}`;
      return found.sort((one, other) => (keyOf(one) < keyOf(other) ? -1 : 1));
    },
    async probe() {
      await call("probe", { method: "GET", path: "/volumes?limit=1", timeoutMs: probeTimeoutMs });
    },
    createVolume: (volume) =>
      read("create-volume", Volume, "volume", { method: "POST", path: "/volumes", body: { volume } }),
    async deleteVolume(id) {
      await unlessGone(call("delete-volume", { method: "DELETE", path: `/volumes/${id}` }));
    },
    async updateVolume(id, changes) {
      await call("update-volume", { method: "PUT", path: `/volumes/${id}`, body: { volume: changes } });
    },
    async setMetadata(id, metadata) {
      await call("set-metadata", { method: "POST", path: `/volumes/${id}/metadata`, body: { metadata } });
    },
    async deleteMetadata(id, key) {
      await unlessGone(call("delete-metadata", { method: "DELETE", path: `/volumes/${id}/metadata/${key}` }));
    },
    async action(id, action) {
      const name = Object.keys(action)[0] ?? "";
      await call(name.replaceAll("_", "-"), { method: "POST", path: `/volumes/${id}/action`, body: action });
    },
    async messages(resourceId) {
      const path = `/messages?resource_uuid=${resourceId}`;
      const parsed = Messages.safeParse(await call("messages", { method: "GET", path }));
      return parsed.success ? parsed.data.messages.map((message) => message.user_message) : [];
    },
    attach: (volumeId, mode, connector) =>
      read("attach", Attachment, "attachment", {
        method: "POST",
        path: "/attachments",
        body: { attachment: { volume_uuid: volumeId, mode, ...(connector && { connector }) } },
        timeoutMs: attachTimeoutMs,
      }),
    connect: (id, connector) =>
      read("connect", Attachment, "attachment", {
        method: "PUT",
        path: `/attachments/${id}`,
        body: { attachment: { connector } },
        timeoutMs: attachTimeoutMs,
      }),
    async complete(id) {
      await call("complete", { method: "POST", path: `/attachments/${id}/action`, body: { "os-complete": {} } });
    },
    attachment: (id) =>
      unlessGone(read("show-attachment", Attachment, "attachment", { method: "GET", path: `/attachments/${id}` })),
    attachmentsOf: (volumeId) =>
      read("list-attachments", z.array(Attachment), "attachments", {
        method: "GET",
        path: `/attachments/detail?all_tenants=1&volume_id=${volumeId}&limit=${pageLength}`,
      }),
    async detach(id) {
      await unlessGone(call("detach", { method: "DELETE", path: `/attachments/${id}`, timeoutMs: attachTimeoutMs }));
    },
  };
}
