import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { type CephPrograms, provideCeph } from "../../scripts/ceph-package.ts";
import { systemPython } from "../../scripts/debian-packages.ts";
import { freePort, type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { waitFor } from "./wait-for.ts";

/** A real Ceph of one monitor and one OSD on a file, on loopback, with cephx. */
export interface Ceph extends AsyncDisposable {
  readonly conf: string;
  readonly environment: Record<string, string>;
  /** Of `client.admin`, which may do everything. */
  readonly keyring: string;
  /** Runs a program of Ceph as admin. @returns what it prints @throws with its own words, also after 60 s */
  run(program: string, ...args: string[]): Promise<string>;
  /** Makes a user. @returns the path of its keyring */
  user(name: string, ...caps: string[]): Promise<string>;
  stopOsd(): Promise<void>;
  startOsd(): Promise<void>;
}

/** A client waits for ever for an OSD that is away. */
const limitMs = 60_000;

export async function startCeph(home: string, path: string): Promise<Ceph> {
  const programs = await provideCeph(path, (line) => process.stderr.write(`${line}\n`));
  const conf = join(home, "ceph.conf");
  const keyring = join(home, "admin.keyring");
  const [fsid, port] = [randomUUID(), await freePort()];
  for (const name of ["mon.a", "osd.0", "run"]) await mkdir(join(home, name), { recursive: true });
  await writeFile(conf, configuration(home, { fsid, port, folders: programs.folders }));
  const env = { ...process.env, ...programs.environment };
  const run = async (program: string, ...args: string[]): Promise<string> => {
    const [command, before] = program === "ceph" ? [systemPython, [programs.ceph]] : [program, []];
    const all = [...before, ...args, ...(program === "ceph" || program === "rbd" ? ["-c", conf] : [])];
    return (await promisify(execFile)(command, all, { env, timeout: limitMs, killSignal: "SIGKILL" })).stdout;
  };
  const daemon = (name: string, program: string, id: string): Promise<Program> =>
    spawnProgram({
      name,
      command: program,
      args: ["-c", conf, "-i", id, "-f"],
      env,
      cwd: home,
      log: join(home, `${name}.log`),
    });
  await using started = new AsyncDisposableStack();
  await makeMonitor(home, { run, conf, keyring, fsid, port });
  started.adopt(await daemon("mon.a", "ceph-mon", "a"), async (program) => {
    await program.stop({ signal: "SIGKILL" });
  });
  await makeOsd(home, { run, conf });
  let osd: Program | null = null;
  const isUp = async (): Promise<boolean> => (await run("ceph", "osd", "stat")).includes("1 up");
  const stopOsd = async (): Promise<void> => {
    await osd?.stop({ signal: "SIGKILL" });
    osd = null;
  };
  const startOsd = async (): Promise<void> => {
    osd = await daemon("osd.0", "ceph-osd", "0");
    await waitFor(isUp, { what: "the OSD is up", timeoutMs: limitMs });
  };
  started.defer(stopOsd);
  await startOsd();
  const owned = started.move();
  return {
    conf,
    keyring,
    environment: programs.environment,
    run,
    user: async (name, ...caps) => {
      const file = join(home, `${name}.keyring`);
      await writeFile(file, await run("ceph", "auth", "get-or-create", `client.${name}`, ...caps), { mode: 0o600 });
      return file;
    },
    stopOsd,
    startOsd,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

type RunCeph = Ceph["run"];

async function makeMonitor(
  home: string,
  { run, conf, keyring, fsid, port }: { run: RunCeph; conf: string; keyring: string; fsid: string; port: number },
): Promise<void> {
  const first = join(home, "mon.keyring");
  const all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"];
  await run("ceph-authtool", "-C", first, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *");
  await run("ceph-authtool", "-C", keyring, "--gen-key", "-n", "client.admin", ...all);
  await run("ceph-authtool", first, "--import-keyring", keyring);
  const map = join(home, "monmap");
  await run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", `[v2:127.0.0.1:${port}]`, map);
  await run("ceph-mon", "-c", conf, "--mkfs", "-i", "a", "--monmap", map, "--keyring", first);
}

async function makeOsd(home: string, { run, conf }: { run: RunCeph; conf: string }): Promise<void> {
  const id = randomUUID();
  const key = (await run("ceph-authtool", "--gen-print-key")).trim();
  await writeFile(join(home, "osd.json"), JSON.stringify({ cephx_secret: key }), { mode: 0o600 });
  await run("ceph", "osd", "new", id, "-i", join(home, "osd.json"));
  await run("ceph-authtool", "-C", join(home, "osd.0/keyring"), "--name", "osd.0", "--add-key", key);
  await run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", id);
}

function configuration(
  home: string,
  { fsid, port, folders }: { fsid: string; port: number; folders: CephPrograms["folders"] },
): string {
  return `
[global]
fsid = ${fsid}
mon_host = v2:127.0.0.1:${port}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_osd_min_in_ratio = 0
auth_allow_insecure_global_id_reclaim = false
public_network = 127.0.0.0/8
run_dir = ${home}/run
pid_file = ${home}/run/$name.pid
log_file = ${home}/$name.daemon.log
setuser_match_path = ""
plugin_dir = ${folders.plugins}
erasure_code_dir = ${folders.erasureCodes}
osd_class_dir = ${folders.classes}
[client]
log_file = /dev/null
[client.admin]
keyring = ${home}/admin.keyring
[mon.a]
admin_socket = ${home}/run/$name.asok
mon_data = ${home}/mon.a
keyring = ${home}/mon.a/keyring
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[osd.0]
admin_socket = ${home}/run/$name.asok
osd_data = ${home}/osd.0
keyring = ${home}/osd.0/keyring
osd_objectstore = bluestore
bluestore_block_size = 4294967296
bluestore_block_create = true
bluestore_block_db_create = false
bluestore_block_wal_create = false
osd_memory_target = 939524096
osd_max_object_name_len = 256
`;
}
