import { existsSync } from "node:fs";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { provideQemu } from "../../scripts/qemu-package.ts";
import { type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { waitFor } from "./wait-for.ts";

/** A raw disk opened by a storage daemon and exported over NBD under its name. */
export interface ServedDisk {
  name: string;
  path: string;
}

export interface StorageDaemon extends AsyncDisposable {
  readonly qmpSocket: string;
  readonly nbdSocket: string;
  readonly program: Program;
}

/** A real qemu-storage-daemon with its sockets in `dir`, whose path must be short. `await using` ends it. */
export async function startStorageDaemon(dir: string, disks: readonly ServedDisk[]): Promise<StorageDaemon> {
  const qmpSocket = join(dir, "qmp.sock");
  const nbdSocket = join(dir, "nbd.sock");
  const program = await startQemu("qemu-storage-daemon", [
    ...["--chardev", `socket,path=${qmpSocket},server=on,wait=off,id=qmp0`, "--monitor", "chardev=qmp0"],
    ...disks.flatMap(({ name, path }) => [
      ...["--blockdev", `driver=file,node-name=${name}-file,filename=${path},discard=unmap`],
      ...["--blockdev", `driver=raw,node-name=${name},file=${name}-file,discard=unmap`],
    ]),
    ...["--nbd-server", `addr.type=unix,addr.path=${nbdSocket},max-connections=16`],
    ...disks.flatMap(({ name }) => [
      "--export",
      `type=nbd,id=${name}-export,node-name=${name},name=${name},writable=on`,
    ]),
    ...["--pidfile", join(dir, "daemon.pid")], // Written once everything is open.
  ]);
  await appears(join(dir, "daemon.pid"), program);
  return { qmpSocket, nbdSocket, program, [Symbol.asyncDispose]: async () => void (await program.stop()) };
}

/** Starts a program of Debian's QEMU; with `mount` in its own mount namespace, in which an image is mounted (root only). */
export async function startQemu(
  name: "qemu-storage-daemon" | "qemu-ga",
  args: readonly string[],
  mount?: { image: string; mountpoint: string },
): Promise<Program> {
  const { command, environment } = await provideQemu(name, (line) => process.stderr.write(`${line}\n`));
  const env = { PATH: process.env["PATH"], ...environment };
  if (mount === undefined) return await spawnProgram({ name, command, args, env });
  const script = 'mount -o loop "$1" "$2" && shift 2 && exec "$@"';
  const wrapped = ["--mount", "--propagation", "private", "/bin/sh", "-c", script, name, mount.image, mount.mountpoint];
  return await spawnProgram({ name, command: "unshare", args: [...wrapped, command, ...args], env });
}

export async function appears(path: string, program: Program): Promise<void> {
  await waitFor(() => !program.running() || existsSync(path), {
    what: `${program.name} is ready`,
    timeoutMs: 60_000,
    context: () => program.tail(),
  });
  if (!program.running()) throw new Error(`${program.name} has ended:\n${program.tail()}`);
}

/** A process that writes one counter to the exports in turn, see nbd-writer.ts. */
export interface NbdWriter {
  /** Ends it. @returns the last counter that was acknowledged by every export */
  stop(): Promise<number>;
}

export async function startNbdWriter(socket: string, names: readonly string[]): Promise<NbdWriter> {
  const program = await spawnProgram({
    name: "nbd-writer",
    command: process.execPath,
    args: [join(root, "test/kit/nbd-writer.ts"), socket, ...names],
    env: { PATH: process.env["PATH"] },
  });
  await waitFor(() => !program.running() || program.tail().includes("writing"), {
    what: "the writer is attached",
    timeoutMs: 60_000,
    context: () => program.tail(),
  });
  return {
    stop: async () => {
      await program.stop({ timeoutMs: 60_000 });
      const end = /\{"counter":(\d+)\}/.exec(program.tail());
      if (end === null) throw new Error(`The writer has failed:\n${program.tail()}`);
      return Number(end[1]);
    },
  };
}
