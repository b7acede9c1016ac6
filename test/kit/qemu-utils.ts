import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { provideQemuUtils } from "../../scripts/qemu-utils-package.ts";

/** Puts qemu-img, qemu-nbd and qemu-io on this process's PATH. */
export async function installQemuUtils(): Promise<void> {
  const say = (line: string) => process.stderr.write(`${line}\n`);
  Object.assign(process.env, await provideQemuUtils(process.env["PATH"] ?? "", say));
}

/** Runs one of them. @returns what it has written @throws unless it ends with 0 */
export async function qemu(command: "qemu-img" | "qemu-io" | "qemu-nbd", ...args: string[]): Promise<string> {
  return (await promisify(execFile)(command, args, { timeout: 60_000 })).stdout;
}

/** Makes an encrypted qcow2 image of `size` (as qemu-img takes it) whose passphrase is nobody's business. */
export async function makeEncrypted(path: string, size: string): Promise<void> {
  const passphrase = ["--object", "secret,id=s,data=passphrase"];
  const options = ["-o", "encrypt.format=luks,encrypt.key-secret=s"];
  for (let left = 10; ; left -= 1) {
    try {
      await qemu("qemu-img", "create", "-q", "-f", "qcow2", ...passphrase, ...options, path, size);
      return;
    } catch (error) {
      // It measures how fast it derives keys, and gives up where the kernel has counted no time for that.
      if (left === 0 || !(error as Error).message.includes("accurate CPU usage")) throw error;
    }
  }
}

/** Writes to a qcow2 image as a virtual machine does: under QEMU's lock. */
export async function qemuWrite(image: string, bytes: Uint8Array, offset: number): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "tephra-write-"));
  try {
    const file = join(folder, "bytes");
    await writeFile(file, bytes);
    const said = await qemu("qemu-io", "-f", "qcow2", "-c", `write -s ${file} ${offset} ${bytes.length}`, image);
    if (!said.startsWith("wrote ")) throw new Error(said);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
