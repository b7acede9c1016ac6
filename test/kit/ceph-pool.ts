import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { provideQemuBlock } from "../../scripts/qemu-block-package.ts";
import { type Ceph, startCeph } from "./ceph.ts";

/** A Ceph with the pool `volumes`, and QEMU's tools that reach it. */
export interface CephPool extends AsyncDisposable {
  readonly ceph: Ceph;
  /** For programs of Ceph's and QEMU's. */
  readonly environment: Record<string, string>;
  /** Of `client.tephra`, with the rights that are documented. */
  readonly keyring: string;
}

export async function startCephPool(): Promise<CephPool> {
  await using stack = new AsyncDisposableStack();
  const home = await mkdtemp(join(tmpdir(), "tephra-ceph-"));
  stack.defer(() => rm(home, { recursive: true, force: true }));
  const ceph = stack.use(await startCeph(home, process.env["PATH"] ?? ""));
  const qemu = await provideQemuBlock(ceph.environment["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  const libraries = `${qemu["LD_LIBRARY_PATH"]}:${ceph.environment["LD_LIBRARY_PATH"]}`;
  await ceph.run("ceph", "osd", "pool", "create", "volumes", "8");
  await ceph.run("rbd", "pool", "init", "volumes");
  const keyring = await ceph.user("tephra", "mon", "profile rbd", "osd", "profile rbd pool=volumes");
  const owned = stack.move();
  return {
    ceph,
    environment: { ...ceph.environment, ...qemu, LD_LIBRARY_PATH: libraries },
    keyring,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
