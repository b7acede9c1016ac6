import { randomUUID } from "node:crypto";
import { reservedContainer } from "@tephra/format";
import { InvalidContainerError } from "../errors.ts";
import type { WriteContext } from "../run/run-context.ts";
import {
  fencedPieces,
  isOtherMd5,
  type LargeUpload,
  type ListPage,
  listedMd5,
  md5OfTag,
  type ObjectStore,
  type PendingUpload,
  type PutBody,
  type StoredObject,
  type UploadedPart,
} from "./object-store.ts";
import { contradiction, pagesOf } from "./pages.ts";
import { type ObjectKey, operationIdPattern } from "./repository.ts";
import { type SwiftAuth, SwiftClient, type SwiftNetwork } from "./swift-client.ts";

export interface SwiftSettings extends SwiftNetwork {
  container: string;
  auth: SwiftAuth;
  /** For newly created containers; null: the cluster's default. */
  storagePolicy: string | null;
  partBytes: number;
  pageItems: number;
}

/**
 * OpenStack Swift, compatible with Cinder's Swift driver. Every put carries `If-None-Match: *` and the MD5 of its bytes, which the
 * service checks before storing. Large objects are static large objects, with their segments under `.tephra/segments/` of the same
 * container.
 */
export class SwiftStore implements ObjectStore {
  readonly driver = "swift";
  readonly versionsRemovedBy = null;
  readonly service = "cinder.backup.drivers.swift.SwiftBackupDriver";
  readonly container: string;
  readonly label: string;
  readonly partBytes: number;
  readonly #settings: SwiftSettings;
  readonly #client: SwiftClient;

  constructor(settings: SwiftSettings) {
    this.container = settings.container;
    this.label = `swift:${settings.container} at ${settings.auth.storageUrl ?? settings.auth.url}`;
    this.partBytes = settings.partBytes;
    this.#settings = settings;
    this.#client = new SwiftClient(this.label, settings.auth, settings);
    this.checkContainer(settings.container);
  }

  checkContainer(container: string): void {
    if (!container.includes("/")) return;
    const rule = "a container of Swift has no slash in its name";
    throw new InvalidContainerError(`Invalid container ${JSON.stringify(container.slice(0, 300))}: ${rule}.`);
  }

  async ensureContainer(container: string): Promise<void> {
    if (await this.containerExists(container)) return;
    const { storagePolicy } = this.#settings;
    const answer = await this.#client.send({
      method: "PUT",
      path: encodeURIComponent(container),
      verb: `create the container ${container}`,
      headers: storagePolicy === null ? {} : { "x-storage-policy": storagePolicy },
      accept: [409], // Just created by someone else, under another policy.
    });
    await answer.body.dump();
  }

  /** Callers without write permission are refused before the name is looked up. */
  async checkPut(key: ObjectKey, body: PutBody): Promise<void> {
    await this.put(key, body, uncontested);
  }

  async containerExists(container: string): Promise<boolean> {
    const verb = `look at the container ${container}`;
    const path = encodeURIComponent(container);
    const answer = await this.#client.send({ method: "HEAD", path, verb, accept: [404] });
    await answer.body.dump();
    return answer.statusCode !== 404;
  }

  async put(key: ObjectKey, body: PutBody, ctx: WriteContext): Promise<"stored" | "doubtful" | "taken"> {
    const answer = await this.#client.send({
      method: "PUT",
      path: pathOf(key),
      verb: `store ${key.name}`,
      headers: {
        "content-length": String(body.sizeBytes),
        "content-type": "application/octet-stream",
        etag: body.md5,
        "if-none-match": "*",
      },
      body: () => fencedPieces(body, ctx),
      signal: ctx.signal,
      accept: [412],
    });
    await answer.body.dump();
    if (answer.statusCode === 412) return "taken";
    return isOtherMd5(answer.headers["etag"], body.md5) ? "doubtful" : "stored";
  }

  /** Of a large object, its contents: the copy shares no segments with it. */
  async copy(from: ObjectKey, to: ObjectKey, ctx: WriteContext): Promise<{ tag: unknown }> {
    const answer = await this.#client.send({
      method: "PUT",
      path: pathOf(to),
      verb: `copy ${from.name}`,
      headers: { "content-length": "0", "x-copy-from": `/${pathOf(from)}` },
      signal: ctx.signal,
      missing: from,
    });
    await answer.body.dump();
    return { tag: answer.headers["etag"] };
  }

  async beginLarge(key: ObjectKey): Promise<LargeUpload> {
    return { key, id: randomUUID() };
  }

  async putPart(upload: LargeUpload, number: number, body: PutBody, ctx: WriteContext): Promise<UploadedPart> {
    // "taken": an earlier attempt whose response was lost. The name belongs to this upload alone.
    const outcome = await this.put(segmentOf(upload, number), body, ctx);
    if (outcome === "doubtful")
      throw contradiction(this.label, `segments of ${upload.key.name}`, "it keeps other bytes");
    return { tag: body.md5, sizeBytes: body.sizeBytes };
  }

  async completeLarge(
    upload: LargeUpload,
    parts: readonly UploadedPart[],
    ctx: WriteContext,
  ): Promise<"stored" | "taken"> {
    const segments = parts.map(({ tag, sizeBytes }, index) => {
      const { container, name } = segmentOf(upload, index + 1);
      return { path: `/${container}/${name}`, etag: tag, size_bytes: sizeBytes };
    });
    return this.#putManifest(upload.key, segments, ctx);
  }

  async abandonLarge(upload: LargeUpload): Promise<void> {
    const { container } = upload.key;
    for await (const items of this.#pages(container, segmentFolder(upload))) {
      for (const { name } of items) await this.#delete({ container, name }, false);
    }
  }

  async *get(
    key: ObjectKey,
    { offset, length, signal }: { offset: number; length: number | null; signal: AbortSignal | undefined },
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    if (length === 0) return;
    const whole = offset === 0 && length === null;
    const range = `bytes=${offset}-${length === null ? "" : offset + length - 1}`;
    const verb = `read ${key.name}`;
    const answer = await this.#client.send({
      method: "GET",
      path: pathOf(key),
      verb,
      headers: whole ? {} : { range },
      signal,
      missing: key,
      accept: [416], // Past the end, or any part of an empty object.
    });
    try {
      if (answer.statusCode === 416) return;
      for await (const chunk of answer.body) {
        signal?.throwIfAborted();
        yield chunk as Uint8Array<ArrayBuffer>;
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw this.#client.translate(verb, error);
    } finally {
      // Frees the connection, or aborts it when the reader stops early.
      answer.body.on("error", () => {}).destroy();
    }
  }

  async stat(key: ObjectKey): Promise<{ sizeBytes: number; md5: string | null }> {
    const verb = `look at ${key.name}`;
    const answer = await this.#client.send({ method: "HEAD", path: pathOf(key), verb, missing: key });
    await answer.body.dump();
    const { etag, "content-length": size, "x-static-large-object": large } = answer.headers;
    return { sizeBytes: Number(size), md5: large === undefined ? md5OfTag(etag) : null };
  }

  async listPage(container: string, prefix: string, after: string | null): Promise<ListPage<StoredObject> | null> {
    const query = new URLSearchParams({ format: "json", prefix, limit: String(this.#settings.pageItems) });
    if (after !== null) query.set("marker", after);
    const path = `${encodeURIComponent(container)}?${query}`;
    const answer = await this.#client.send({ method: "GET", path, verb: `list ${container}`, accept: [404] });
    if (answer.statusCode === 404) {
      await answer.body.dump();
      return null;
    }
    const found = await this.#json<Row>(answer, `list ${container}`);
    const items = found.map(({ name, bytes, last_modified: modified, hash, slo_etag: large }) => {
      if (typeof name !== "string" || name === "" || !Number.isSafeInteger(bytes)) {
        throw contradiction(this.label, container, "an entry has no name or no size");
      }
      // A large object's hash is that of its manifest.
      const md5 = large === undefined ? listedMd5(hash) : {};
      return { name, sizeBytes: Number(bytes), modifiedAt: dateOf(modified), ...md5 };
    });
    // A page can be shorter than requested; only an empty one is certainly the last.
    return { items, next: items.at(-1)?.name ?? null };
  }

  async keepsVersions(): Promise<boolean> {
    const verb = `look at the container ${this.container}`;
    const path = encodeURIComponent(this.container);
    const answer = await this.#client.send({ method: "HEAD", path, verb, accept: [404] });
    await answer.body.dump();
    const {
      "x-versions-enabled": enabled,
      "x-versions-location": versions,
      "x-history-location": history,
    } = answer.headers;
    return String(enabled).toLowerCase() === "true" || versions !== undefined || history !== undefined;
  }

  /** What is left of the quotas of the account and of the container, whichever is less. */
  async freeBytes(): Promise<number | null> {
    const left: number[] = [];
    for (const [kind, path] of [
      ["account", ""],
      ["container", encodeURIComponent(this.container)],
    ] as const) {
      const verb = `look at the ${kind}`;
      // Some services let nobody look at the account.
      const answer = await this.#client.send({ method: "HEAD", path, verb, accept: [403, 404, 405] });
      await answer.body.dump();
      const quota = answer.headers[`x-${kind}-meta-quota-bytes`];
      const used = Number(answer.headers[`x-${kind}-bytes-used`] ?? 0);
      if (/^\d{1,18}$/.test(String(quota)) && Number.isFinite(used)) left.push(Math.max(0, Number(quota) - used));
    }
    return left.length === 0 ? null : Math.min(...left);
  }

  async containersPage(after: string | null): Promise<ListPage<string>> {
    const query = new URLSearchParams({ format: "json", limit: String(this.#settings.pageItems) });
    if (after !== null) query.set("marker", after);
    const answer = await this.#client.send({ method: "GET", path: `?${query}`, verb: "list the containers" });
    const items = (await this.#json<{ name?: unknown }>(answer, "list the containers")).map(({ name }) => {
      if (typeof name !== "string" || name === "")
        throw contradiction(this.label, "containers", "an entry has no name");
      return name;
    });
    return { items, next: items.at(-1) ?? null };
  }

  async remove(key: ObjectKey): Promise<void> {
    const verb = `look at ${key.name}`;
    const answer = await this.#client.send({ method: "HEAD", path: pathOf(key), verb, accept: [404] });
    await answer.body.dump();
    if (answer.statusCode === 404) return;
    await this.#delete(key, answer.headers["x-static-large-object"] !== undefined);
  }

  /** Segments that belong to no large object. Their names identify the intended one. */
  async uploadsPage(container: string, after: string | null): Promise<ListPage<PendingUpload> | null> {
    const query = new URLSearchParams({ format: "json", prefix: segmentsFolder, delimiter: "/" });
    query.set("limit", String(this.#settings.pageItems));
    if (after !== null) query.set("marker", after);
    const verb = `list uploads to ${container}`;
    const path = `${encodeURIComponent(container)}?${query}`;
    const answer = await this.#client.send({ method: "GET", path, verb, accept: [404] });
    if (answer.statusCode === 404) {
      await answer.body.dump();
      return null;
    }
    const folders = (await this.#json<{ subdir?: unknown }>(answer, verb)).flatMap(({ subdir }) => subdir ?? []);
    const items: PendingUpload[] = [];
    for (const folder of folders) {
      const pending = await this.#pendingIn(container, String(folder));
      if (pending !== null) items.push(pending);
    }
    return { items, next: folders.length === 0 ? null : String(folders.at(-1)) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client[Symbol.asyncDispose]();
  }

  #pages(container: string, prefix: string): AsyncGenerator<StoredObject[]> {
    return pagesOf((after) => this.listPage(container, prefix, after), { label: this.label, what: container });
  }

  async #pendingIn(container: string, folder: string): Promise<PendingUpload | null> {
    let upload: LargeUpload | null = null;
    let modifiedAt = new Date(0);
    for await (const segments of this.#pages(container, folder)) {
      for (const segment of segments) {
        upload ??= uploadOf({ container, name: segment.name });
        if (segment.modifiedAt > modifiedAt) modifiedAt = segment.modifiedAt;
      }
    }
    if (upload === null || (await this.#refersTo(upload.key, folder))) return null;
    return { upload, modifiedAt };
  }

  /** Whether an object is a large one with segments in this folder. */
  async #refersTo(key: ObjectKey, folder: string): Promise<boolean> {
    const verb = `look at ${key.name}`;
    const head = await this.#client.send({ method: "HEAD", path: pathOf(key), verb, accept: [404] });
    await head.body.dump();
    if (head.statusCode === 404 || head.headers["x-static-large-object"] === undefined) return false;
    const path = `${pathOf(key)}?multipart-manifest=get`;
    const answer = await this.#client.send({ method: "GET", path, verb });
    const segments = await this.#json<{ name?: unknown }>(answer, verb);
    return segments.some(({ name }) => String(name).startsWith(`/${key.container}/${folder}`));
  }

  /** Removes a large object together with its segments. */
  async #delete(key: ObjectKey, large: boolean): Promise<void> {
    const path = `${pathOf(key)}${large ? "?multipart-manifest=delete" : ""}`;
    const answer = await this.#client.send({ method: "DELETE", path, verb: `remove ${key.name}`, accept: [404] });
    await answer.body.dump();
  }

  async #putManifest(
    key: ObjectKey,
    segments: readonly { path: string; etag: string; size_bytes: number }[],
    ctx: WriteContext,
  ): Promise<"stored" | "taken"> {
    const bytes = Buffer.from(JSON.stringify(segments));
    const answer = await this.#client.send({
      method: "PUT",
      path: `${pathOf(key)}?multipart-manifest=put`,
      verb: `store ${key.name}`,
      headers: { "content-length": String(bytes.length), "if-none-match": "*" },
      body: async function* () {
        yield bytes;
      },
      signal: ctx.signal,
      accept: [412],
    });
    await answer.body.dump();
    return answer.statusCode === 412 ? "taken" : "stored";
  }

  async #json<Item>(answer: { body: { json(): Promise<unknown> } }, verb: string): Promise<Item[]> {
    try {
      const parsed = await answer.body.json();
      if (!Array.isArray(parsed)) throw new Error("not a list");
      return parsed as Item[];
    } catch (error) {
      throw this.#client.translate(verb, error);
    }
  }
}

const uncontested: WriteContext = { signal: new AbortController().signal, fence: () => {} };

function pathOf({ container, name }: ObjectKey): string {
  return `${encodeURIComponent(container)}/${name.split("/").map(encodeURIComponent).join("/")}`;
}

const segmentsFolder = `${reservedContainer}/segments/`;

function segmentFolder(upload: LargeUpload): string {
  return `${segmentsFolder}${upload.id}/`;
}

/** A segment's name contains that of its object, so that its use can be checked. */
function segmentOf(upload: LargeUpload, number: number): ObjectKey {
  const { container, name } = upload.key;
  return { container, name: `${segmentFolder(upload)}${name}/${String(number).padStart(8, "0")}` };
}

/** The upload that a segment was made for; null for a name that does not identify one. */
function uploadOf({ container, name }: ObjectKey): LargeUpload | null {
  const [id = "", ...rest] = name.slice(segmentsFolder.length).split("/");
  const object = rest.slice(0, -1).join("/");
  return operationIdPattern.test(id) && object !== "" ? { key: { container, name: object }, id } : null;
}

interface Row {
  name?: unknown;
  bytes?: unknown;
  last_modified?: unknown;
  hash?: unknown;
  slo_etag?: unknown;
}

/** Listing times are UTC without a zone; an invalid one counts as now. */
function dateOf(text: unknown): Date {
  const date = new Date(`${text}Z`);
  return Number.isNaN(date.getTime()) ? new Date() : date;
}
