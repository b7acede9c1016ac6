// Both images of the Dockerfile and the services of docker-compose.yml, run: `npm run test:image` (root, Debian).
// The images are built by buildah; their programs run as processes whose root is the image, with the environment, commands and
// secrets of the compose file. PostgreSQL, Redis and an S3 store listen on this machine at the ports that the file expects.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  createReadStream,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { parse } from "yaml";
import { root } from "../../../scripts/bootstrap.mjs";
import { startPostgres } from "../../../scripts/postgres.ts";
import { startRedis } from "../../../scripts/redis.ts";
import { type Program, spawnProgram } from "../../../scripts/spawn-program.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { startSwift } from "../../kit/swift.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { buildImages, type Images, removeImages } from "./build.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;
/** More than one range, so that a worker is lost in the middle of a backup. */
const imageMiB = 1024;
const project = "00000000000000000000000000000001";
const say = (line: string): void => void process.stdout.write(`${line}\n`);

interface Service {
  command: string[];
  environment: Record<string, string>;
}

const compose = parse(readFileSync(join(root, "docker-compose.yml"), "utf8"), { merge: true }) as {
  services: Record<"api" | "worker" | "migrate", Service>;
};

await using stack = new AsyncDisposableStack();
const dir = mkdtempSync(join(tmpdir(), "tephra-image-"));
chmodSync(dir, 0o711);
stack.defer(() => rmSync(dir, { recursive: true, force: true }));
const images = await buildImages(say);
stack.defer(removeImages);
const secrets = await makeSecrets();
await startNeighbours();

const migration = await start("migrate", images.migrate);
const { code } = await migration.exited;
if (code !== 0) throw new Error(`the migration ended with ${code}:\n${migration.tail()}`);
say("migrated, and marked the bucket");
await nativeHashing();

const api = await start("api", images.service);
await waitFor(async () => (await fetch("http://127.0.0.1:8776/readyz")).ok, {
  what: "the API is ready",
  timeoutMs: 60_000,
  context: () => api.tail(),
});
const workers = [await start("worker", images.service), await start("worker", images.service)];
await backUpWhileWorkersDie();
say("1 passed, 0 failed");

/** The secrets as deploy/make-secrets.sh makes them; only the S3 user has the form of the store that is used here. */
async function makeSecrets(): Promise<string> {
  mkdirSync(join(dir, "deploy"));
  copyFileSync(join(root, "deploy/make-secrets.sh"), join(dir, "deploy/make-secrets.sh"));
  await execute("sh", [join(dir, "deploy/make-secrets.sh")]);
  const made = join(dir, "secrets");
  const credentials = readFileSync(join(made, "s3_credentials"), "utf8");
  writeFileSync(join(made, "s3_credentials"), credentials.replace('"tephra"', '"test:tester"'));
  return made;
}

function secret(name: string): string {
  return readFileSync(join(secrets, name), "utf8");
}

async function startNeighbours(): Promise<void> {
  const data = join(dir, "postgres");
  mkdirSync(data);
  writeFileSync(join(data, "password"), secret("postgres_password"), { mode: 0o600 });
  const postgres = await startPostgres({ dataDir: data, log: join(dir, "postgres.log"), port: 5432, say });
  stack.defer(postgres.stop);
  const password = secret("redis_password");
  const redis = await startRedis({ dir: join(dir, "redis"), log: join(dir, "redis.log"), port: 6379, password });
  stack.defer(redis.stop);
  const swift = await startSwift({ key: secret("s3_secret_key"), port: 8333 });
  stack.defer(() => swift[Symbol.asyncDispose]());
  for (const folder of Object.values(images)) {
    appendFileSync(join(folder, "etc/hosts"), "127.0.0.1 localhost postgres redis s3\n");
  }
}

/** A program of the compose file with the image as its root, in mount and process namespaces of its own. */
async function start(service: keyof typeof compose.services, image: Images[keyof Images]): Promise<Program> {
  const { command, environment } = compose.services[service];
  const program = await inImage(image, service, command, { ...environment, TEPHRA_HOST: "127.0.0.1" });
  stack.defer(async () => void (await program.stop()));
  return program;
}

function inImage(image: string, name: string, command: readonly string[], env: NodeJS.ProcessEnv): Promise<Program> {
  const script = [
    'mkdir -p "$2/run/secrets" && mount -t tmpfs -o mode=755 secrets "$2/run/secrets"',
    // Each file for itself, as Compose does it: the folder on the host may be closed to the user of the container.
    'for file in "$1"/*; do : >"$2/run/secrets/$(basename "$file")" && mount --bind "$file" "$2/run/secrets/$(basename "$file")" || exit 1; done',
    'mount -t proc proc "$2/proc"',
    'mount --bind /dev "$2/dev" && image="$2" && shift 2',
    'exec chroot --userspec=node "$image" /usr/bin/env --chdir=/app "$@"',
  ].join(" && ");
  const args = ["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, name, secrets, image, ...command];
  const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  return spawnProgram({ name, command: "unshare", args, env: { PATH: path, HOME: "/home/node", ...env } });
}

async function nativeHashing(): Promise<void> {
  const load = "require('/app/packages/engine/dist/native/hashing.node')";
  const program = await inImage(images.service, "native", ["node", "--eval", load], {});
  if ((await program.exited).code !== 0) throw new Error(`the image hashes by OpenSSL alone:\n${program.tail()}`);
  say("the image has its native hashing");
}

async function backUpWhileWorkersDie(): Promise<void> {
  const image = join(images.service, "srv/import/disk.img");
  for (let at = 0; at < imageMiB; at += 1) appendFileSync(image, randomBytesOf(`image ${at}`, MiB));
  const { volume } = await ask("POST", "/ops/volumes/import", { path: "/srv/import/disk.img", name: "disk" }, 202);
  await ends(`/v3/${project}/volumes/${volume.id}`, (body) => body.volume.status, "available");
  const { backup } = await ask("POST", `/v3/${project}/backups`, { backup: { volume_id: volume.id } }, 202);
  const operation = async (): Promise<{ state: string; bytes_done: number }> => {
    const { operations } = await ask("GET", `/ops/operations?backup_id=${backup.id}`, undefined, 200);
    return operations[0];
  };
  await waitFor(async () => (await operation()).state === "running", { what: "it is copied", timeoutMs: 60_000 });
  workers[0]?.kill("SIGKILL");
  say("a worker was killed while the backup ran");
  await ends(`/v3/${project}/backups/${backup.id}`, (body) => body.backup.status, "available");
  const path = `/v3/${project}/backups/${backup.id}/restore`;
  const { restore } = await ask("POST", path, { restore: { name: "again" } }, 202);
  await ends(`/v3/${project}/volumes/${restore.volume_id}`, (body) => body.volume.status, "available");
  const restored = join(images.service, "srv/volumes", `volume-${restore.volume_id}`);
  if ((await digestOf(restored)) !== (await digestOf(image))) throw new Error("the restored bytes differ");
  say("backed up to the S3 store by the worker that was left, and restored byte for byte");
}

// biome-ignore lint/suspicious/noExplicitAny: the shape of the body is what the caller asks for
async function ask(method: string, path: string, body: unknown, status: number): Promise<any> {
  const headers = { "x-auth-token": secret("token"), "content-type": "application/json" };
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  const reply = await fetch(`http://127.0.0.1:8776${path}`, { method, headers, ...sent });
  const text = await reply.text();
  if (reply.status !== status) throw new Error(`${method} ${path}: ${reply.status} ${text}`);
  return JSON.parse(text);
}

// biome-ignore lint/suspicious/noExplicitAny: as above
async function ends(path: string, statusOf: (body: any) => string, status: string): Promise<void> {
  const what = `${path} is ${status}`;
  const context = (): string => [api, ...workers].map((program) => program.tail()).join("\n");
  await waitFor(async () => statusOf(await ask("GET", path, undefined, 200)) === status, {
    what,
    timeoutMs: 180_000,
    everyMs: 500,
    context,
  });
}

async function digestOf(path: string): Promise<string> {
  const digest = createHash("sha256");
  await pipeline(createReadStream(path), digest);
  return digest.digest("hex");
}
