import { codecOf } from "../codec/compression.ts";
import { DamagedObjectError } from "../errors.ts";
import { dataName, dataNumber, hashListName, keyVersion, metadataName } from "../format/layout.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import type { BackupReference } from "./backup-reference.ts";
import { streamEntries, summarize } from "./chain.ts";

const damagedMax = 1000;

/** Objects whose listed sizes are held in memory per pass: about 50 MB. */
const objectsPerPass = 1_000_000;

/**
 * Verifies one backup without its ancestors: its metadata is readable, has a known version, and lists exactly the objects that exist.
 * Returns no findings when it is intact. Throws when the repository cannot be read.
 */
export async function verifyListing(reference: BackupReference, signal: AbortSignal): Promise<DamagedObject[]> {
  const findings = new Findings();
  await findings.collect(() => compareListing(reference, findings, signal));
  return findings.damaged;
}

/** An object of a backup that is missing or wrong, and why. */
export interface DamagedObject {
  object: string;
  reason: string;
}

/** Collects damage, once per object. */
export class Findings {
  readonly #reasons = new Map<string, string>();

  get full(): boolean {
    return this.#reasons.size >= damagedMax;
  }

  get damaged(): DamagedObject[] {
    return Array.from(this.#reasons, ([object, reason]) => ({ object, reason }));
  }

  note(object: string, reason: string): void {
    if (!this.full && !this.#reasons.has(object)) this.#reasons.set(object, reason);
  }

  /** The result, or undefined when the work found damage, which is recorded. */
  async collect<Result>(work: () => Promise<Result>): Promise<Result | undefined> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof DamagedObjectError)) throw error;
      this.note(error.object, error.reason);
      return undefined;
    }
  }
}

/** Compares names and stored sizes under the prefix with the metadata; returns the number of objects found. */
export async function compareListing(
  reference: BackupReference,
  findings: Findings,
  signal: AbortSignal,
): Promise<number> {
  const { prefix } = reference;
  const { objects } = await summarize(reference, signal);
  const passes = Math.max(1, Math.ceil(objects / objectsPerPass));
  for (let pass = 0; pass < passes && !findings.full; pass++) {
    const mine = (number: number): boolean => number % passes === pass;
    const sizes = new Map<number, number>();
    for await (const { name, sizeBytes } of reference.repository.list(reference.container, prefix)) {
      signal.throwIfAborted();
      const number = dataNumber(prefix, name);
      const known = [metadataName(prefix), hashListName(prefix)].includes(name) || keyVersion(prefix, name) !== null;
      if (number !== null && mine(number) && sizes.size <= 2 * objectsPerPass) sizes.set(number, sizeBytes);
      else if (number === null && !known) findings.note(name, "it does not belong to the backup");
    }
    for await (const entries of streamEntries(reference, signal)) {
      for (const entry of entries) {
        if (!mine(entry.number)) continue;
        const reason = sizeProblem(entry, sizes.get(entry.number));
        if (reason !== null) findings.note(dataName(prefix, entry.number), reason);
        sizes.delete(entry.number);
      }
    }
    for (const number of sizes.keys()) findings.note(dataName(prefix, number), "the metadata does not know it");
  }
  return objects;
}

function sizeProblem(entry: ObjectEntry, sizeBytes: number | undefined): string | null {
  if (sizeBytes === undefined) return "it is missing";
  if (codecOf(entry.compression) === "none" && sizeBytes !== entry.length) {
    return `${sizeBytes} bytes are stored instead of ${entry.length}`;
  }
  if (sizeBytes === 0) return "it is empty";
  return sizeBytes > entry.length ? `${sizeBytes} bytes are stored, at most ${entry.length} expected` : null;
}
