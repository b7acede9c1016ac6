import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { randomBytesOf } from "../kit/bytes.ts";
import { type CephPool, startCephPool } from "../kit/ceph-pool.ts";
import { type BesideWorld, same, startWorld } from "./beside-world.ts";

/** A Ceph, and a Cinder with its own RBD driver, whose volumes are images of the pool `volumes`. */
export interface RbdWorld extends AsyncDisposable {
  readonly home: string;
  readonly pool: CephPool;
  readonly world: BesideWorld;
  /** Writes random bytes of that seed, as a machine would that has the volume. */
  write(volumeId: string, offset: number, length: number, seed: string): Promise<void>;
  /** What a volume holds, as Ceph's own tool says. */
  keep(volumeId: string, name: string): Promise<string>;
  isSame(volumeId: string, expected: string): Promise<boolean>;
  /** What there is in Ceph, and in Cinder of all projects. */
  objects(): Promise<string[]>;
}

export const image = (id: string): string => `volumes/volume-${id}`;

/** `settings`: more of the cluster's in the configuration. `path`: what precedes the PATH of our programs. */
export async function startRbdWorld(settings: object = {}, path?: (home: string) => string): Promise<RbdWorld> {
  await using stack = new AsyncDisposableStack();
  const home = await mkdtemp(join(tmpdir(), "tephra-beside-rbd-"));
  stack.defer(() => rm(home, { recursive: true, force: true }));
  const pool = stack.use(await startCephPool());
  const { ceph, keyring } = pool;
  const environment = {
    ...pool.environment,
    ...(path && { PATH: `${path(home)}:${pool.environment["PATH"]}` }),
  };
  const conf = await clientConf(home, pool);
  const world = stack.use(
    await startWorld({
      section: [
        "volume_driver = cinder.volume.drivers.rbd.RBDDriver",
        "rbd_pool = volumes",
        `rbd_ceph_conf = ${conf}`,
        "rbd_user = cinder",
        "rbd_secret_uuid = 11111111-2222-3333-4444-555555555555",
      ].join("\n"),
      environment,
      backend: { ceph: [{ pools: ["volumes"], conf: ceph.conf, user: "tephra", keyring, ...settings }] },
    }),
  );
  const keep: RbdWorld["keep"] = async (id, name) => {
    const to = join(home, name);
    await rm(to, { force: true });
    await ceph.run("rbd", "export", "--no-progress", image(id), to);
    return to;
  };
  const owned = stack.move();
  return {
    home,
    pool,
    world,
    write: async (id, offset, length, seed) => {
      const bytes = join(home, "bytes");
      writeFileSync(bytes, randomBytesOf(seed, length));
      const file = { driver: "rbd", pool: "volumes", image: `volume-${id}`, conf: ceph.conf };
      const args = ["-c", `write -s ${bytes} ${offset} ${length}`, `json:${JSON.stringify({ driver: "raw", file })}`];
      await promisify(execFile)("qemu-io", args, { env: pool.environment, timeout: 60_000 });
    },
    keep,
    isSame: async (id, expected) => same(expected, await keep(id, "now")),
    objects: async () => {
      const images = JSON.parse(await ceph.run("rbd", "ls", "--format", "json", "volumes")) as string[];
      const volumes = (await world.service.volumes()).map(({ id, status }) => `${id} ${status}`);
      return [...images, ...volumes].sort();
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** As Cinder's driver has it: its user's key by the configuration. */
async function clientConf(home: string, { ceph }: CephPool): Promise<string> {
  const keyring = await ceph.user("cinder", "mon", "profile rbd", "osd", "profile rbd pool=volumes");
  const conf = join(home, "cinder.conf");
  writeFileSync(conf, `${readFileSync(ceph.conf, "utf8")}\n[client.cinder]\nkeyring = ${keyring}\n`);
  return conf;
}
