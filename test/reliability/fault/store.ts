import { randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { startSwift } from "../../kit/swift.ts";

export const storeKinds = ["posix", "s3", "swift"] as const;
export type StoreKind = (typeof storeKinds)[number];

/** Where backups are stored. */
export interface Store extends AsyncDisposable {
  /** What the repository's configuration has beside its name. */
  repository: Record<string, unknown>;
  /** Everything that lies there, as `container/name`, whoever put it. `dir` is the house's folder. */
  names(dir: string): Promise<string[]>;
}

/** A store of its own; a real Swift behind S3's or its own interface, reached through what `via` makes of its address. */
export async function openStore(kind: StoreKind, via: (url: string) => Promise<string>): Promise<Store> {
  if (kind === "posix") {
    return {
      repository: {},
      names: (dir) => filesBelow(join(dir, "repository")),
      [Symbol.asyncDispose]: async () => {},
    };
  }
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await startSwift());
  const folder = mkdtempSync(join(tmpdir(), "tephra-store-"));
  stack.defer(() => rmSync(folder, { recursive: true, force: true }));
  const credentials = join(folder, "credentials.json");
  const secrets =
    kind === "s3" ? { access_key: server.user, secret_key: server.key } : { user: server.user, key: server.key };
  writeFileSync(credentials, JSON.stringify(secrets));
  const place = `b-${randomUUID()}`;
  const urlAt = (base: string): string =>
    kind === "s3"
      ? `s3://${place}?endpoint=${base}`
      : `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&storage_url=${base}/v1/AUTH_test`;
  await initialiseRepository(`${urlAt(server.url)}&credentials=${encodeURIComponent(credentials)}`);
  const url = urlAt((await via(server.url)).replace(/\/$/, ""));
  const list = async (path: string, token: string): Promise<string[]> => {
    const answer = await fetch(`${server.url}/v1/AUTH_test${path}`, { headers: { "x-auth-token": token } });
    if (!answer.ok) throw new Error(`Swift cannot list ${path}: ${answer.status}`);
    return (await answer.text()).split("\n").filter((name) => name !== "");
  };
  const owned = stack.move();
  return {
    repository: { url, credentials },
    names: async () => {
      const headers = { "x-auth-user": server.user, "x-auth-key": server.key };
      const login = await fetch(`${server.url}/auth/v1.0`, { headers });
      const token = login.headers.get("x-auth-token") ?? "";
      const names: string[] = [];
      for (const container of await list("", token)) {
        for (const name of await list(`/${container}`, token)) names.push(`${container}/${name}`);
      }
      return names;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Names of all files below a folder; none when it is missing. */
export async function filesBelow(folder: string): Promise<string[]> {
  if (!existsSync(folder)) return [];
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
}
