import { randomUUID } from "node:crypto";
import type { Config } from "@tephra/control";
import {
  backendFolder,
  backendSettings,
  levelOf,
  type RepositoryConfig,
  repositorySettings,
  type VolumeBackendConfig,
} from "@tephra/control/process";
import {
  chooseHashing,
  type ObjectKey,
  openRepository,
  openVolumeBackend,
  type Repository,
  requireEncoder,
  stagingContainer,
} from "@tephra/engine";
import { checkStoreClock } from "./clocks.ts";
import { type Finding, failed, ok, reasonOf, warning } from "./finding.ts";

const GiB = 1024 ** 3;
const freeBytesMin = GiB;

/** A repository: opened, its identity marker read, and, unless `quick`, tested with a small object of its own, which is removed again. */
export async function checkRepository(settings: RepositoryConfig, quick: boolean): Promise<Finding[]> {
  const subject = `repository ${settings.name}`;
  const { compression } = settings;
  // Also when the store refuses everything: that may be why.
  const findings: Finding[] = await checkStoreClock(subject, settings.url);
  try {
    requireEncoder({ compression, level: levelOf(settings), zlibEncoder: settings.zlib_encoder });
  } catch (error) {
    findings.push(failed(subject, reasonOf(error), "Install libisal2, or remove zlib_encoder."));
  }
  try {
    await using repository = await openRepository(settings.url, repositorySettings(settings));
    const { id } = await repository.identity();
    findings.push(ok(subject, `${repository.driver}, id ${id}`));
    findings.push(...(await checkRights(subject, repository, quick)));
  } catch (error) {
    const cure = "Check that it is mounted or reachable. Create a new one with tephra-engine init --repository URL.";
    findings.push(failed(subject, reasonOf(error), cure));
  }
  return findings;
}

async function checkRights(subject: string, repository: Repository, quick: boolean): Promise<Finding[]> {
  try {
    await repository.checkWritable();
  } catch (error) {
    const seen = `read-only from this machine: ${reasonOf(error)}`;
    return [warning(subject, seen, "This machine can list, verify and restore backups, but cannot create any.")];
  }
  const remarks = await repository.remarks();
  const told = remarks.map((remark) => warning(subject, remark, "See docs/operations.md, Repositories."));
  if (quick) return told;
  const key = { container: stagingContainer(randomUUID()), name: "doctor" };
  try {
    await tryObject(repository, key);
    return [...told, ok(subject, "a test object was written, read, listed and removed, and could not be overwritten")];
  } catch (error) {
    return [
      ...told,
      failed(subject, reasonOf(error), "Grant these credentials the permissions listed in docs/operations.md."),
    ];
  } finally {
    await repository.remove(key).catch(() => {});
  }
}

/** What backups do to a repository, with one small object. */
async function tryObject(repository: Repository, key: ObjectKey): Promise<void> {
  const ctx = { signal: AbortSignal.timeout(60_000), fence: () => {} };
  const bytes = Buffer.from(`tephra doctor ${randomUUID()}`);
  await repository.ensureContainer(key.container);
  await repository.putIfAbsent(key, bytes, ctx);
  const read: Uint8Array[] = [];
  for await (const chunk of repository.get(key, { signal: ctx.signal })) read.push(chunk);
  if (!Buffer.concat(read).equals(bytes)) throw new Error("the object read differs from the object written");
  if ((await repository.putIfAbsent(key, bytes, ctx)) !== "exists")
    throw new Error("an existing object was overwritten");
  let listed = false;
  for await (const object of repository.list(key.container, key.name)) listed ||= object.name === key.name;
  if (!listed) throw new Error("the object that was written is not listed");
  await repository.remove(key);
}

/** A volume backend: it can be opened, and has room. */
export async function checkBackend(config: Config, settings: VolumeBackendConfig): Promise<Finding[]> {
  const subject = `volume backend ${settings.name}`;
  try {
    const backend = await openVolumeBackend(backendSettings(config, settings));
    const freeBytes = await backend.freeBytes();
    if (backend.capabilities.restores === "in-place") return [ok(subject, "volumes are restored in place")];
    const free = `${(freeBytes / GiB).toFixed(1)} GiB free in ${backendFolder(settings) ?? settings.name}`;
    if (freeBytes < freeBytesMin) return [warning(subject, free, "Restores need free space there.")];
    return [ok(subject, free)];
  } catch (error) {
    const advice =
      backendFolder(settings) === null
        ? "The workers must reach it, with the programs and rights that its driver needs (docs/operations.md)."
        : "The folder must be there, and belong to the user of the workers.";
    return [failed(subject, reasonOf(error), advice)];
  }
}

/** This machine: whether hashing uses native code. */
export function checkMachine(_config: Config): Finding[] {
  const { sha256, md5 } = chooseHashing();
  const seen = `SHA-256 by ${sha256}, MD5 by ${md5}`;
  if (md5 !== "openssl") return [ok("hashing", seen)];
  return [warning("hashing", seen, "Backups take up to twice as long. Install gcc and libc6-dev, and rebuild.")];
}
