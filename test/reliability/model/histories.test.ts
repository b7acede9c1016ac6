import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { type FileHandle, open, rm, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { loadDataFinder } from "../../../packages/engine/src/volume/file/data-extents.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf } from "../../kit/journey.ts";
import { Random } from "../fuzz/random.ts";

const KiB = 1024;
const GiB = 1024 ** 3;
const base = `/v3/${project}`;
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? Math.floor(Math.random() * 1e9));
/** Without a number of histories: as many as there is time for. */
const asked = process.env["TEPHRA_MODEL_HISTORIES"];
const sampleMs = 6_000;
const lanes = 6;
/** A long run has the machine to share with others. */
const patienceMs = asked === undefined ? 120_000 : 1_200_000;

const config = {
  quotas: { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 },
  range_bytes: 64 * 1024 * KiB,
  worker: { slots: lanes },
};
const repository = { object_bytes: 2048 * KiB, block_bytes: 4 * KiB };

const pieceBytes = 256 * KiB;
const zeros = Buffer.alloc(pieceBytes);
const findData = await loadDataFinder();

/** The whole pieces of a file that hold data. All of them, where what was found is less than what the file system has for it. */
async function placesOf(file: FileHandle): Promise<number[]> {
  const { size, blocks } = await file.stat();
  const places = new Set<number>();
  for await (const { offset, length } of findData(file.fd, { offset: 0, length: size })) {
    for (let at = offset - (offset % pieceBytes); at < offset + length; at += pieceBytes) places.add(at);
  }
  if (places.size * pieceBytes >= blocks * 512) return [...places];
  return Array.from({ length: Math.ceil(size / pieceBytes) }, (_, i) => i * pieceBytes);
}

/** Of an image: whatever is not zero, in pieces, from the start. The buffer is the same every time. */
async function* contentOf(file: FileHandle): AsyncGenerator<{ offset: number; data: Buffer }> {
  const piece = Buffer.alloc(pieceBytes);
  for (const offset of await placesOf(file)) {
    const { bytesRead } = await file.read(piece, 0, pieceBytes, offset);
    const data = piece.subarray(0, bytesRead);
    if (!data.equals(zeros.subarray(0, bytesRead))) yield { offset, data };
  }
}

/** Of an image: its length, and whatever is not zero with its place. */
async function digestOf(path: string): Promise<string> {
  await using file = await open(path, "r");
  const hash = createHash("sha256").update(String((await file.stat()).size));
  for await (const { offset, data } of contentOf(file)) hash.update(`@${offset}`).update(data);
  return hash.digest("hex");
}

/** A sparse copy: images are a GiB long when they were extended. */
const copySparse = async (from: string, to: string): Promise<void> => {
  await promisify(execFile)("cp", ["--sparse=always", from, to]);
};

/** The first bytes of `onto` become those of `from`; what lies beyond stays. */
async function overlay(from: string, onto: string): Promise<void> {
  const [source, target] = await Promise.all([stat(from), stat(onto)]);
  const whole = `${onto}.new`;
  await copySparse(from, whole);
  await truncate(whole, target.size);
  if (target.size > source.size) {
    await using old = await open(onto, "r");
    await using fresh = await open(whole, "r+");
    for await (const { offset, data } of contentOf(old)) {
      const skipped = Math.max(0, source.size - offset);
      if (skipped < data.length) await fresh.write(data, skipped, data.length - skipped, offset + skipped);
    }
  }
  await copySparse(whole, onto);
  await rm(whole);
}

interface Stored {
  id: string;
  /** What it must hold. */
  image: string;
  parent: string | null;
}

/** One volume and what was made of it, beside a reference image that is changed in the same way. */
class History {
  readonly #house: Instance;
  readonly #journey: Journey;
  readonly #random: Random;
  readonly #name: string;
  readonly #reference: string;
  #volume = "";
  #snapshots: Stored[] = [];
  #backups: Stored[] = [];
  #copies = 0;

  constructor(house: Instance, run: number) {
    this.#house = house;
    this.#journey = journeyOn(house, { patienceMs });
    this.#random = new Random(run);
    this.#name = `history-${run}`;
    this.#reference = join(house.dataDir, `${this.#name}.img`);
  }

  async run(): Promise<number> {
    await (await open(this.#reference, "w")).close();
    await truncate(this.#reference, 64 * KiB + this.#random.below(1_500 * KiB));
    await this.#scribble([this.#reference]);
    this.#volume = await this.#journey.importVolume(this.#reference, this.#name);
    const steps = 5 + this.#random.below(8);
    for (let i = 0; i < steps; i += 1) await this.#step();
    for (const backup of this.#backups) await this.#restoreBeside(backup);
    await this.#removeAll();
    return steps;
  }

  async #step(): Promise<void> {
    const kind = this.#random.below(20);
    if (kind < 6) return this.#scribble([this.#reference, this.#journey.volumeFile(this.#volume)]);
    if (kind < 12) return this.#backUp();
    if (kind < 14) return this.#takeSnapshot();
    if (kind < 16) return this.#restoreOnto();
    if (kind < 18) return this.#deleteBackup();
    if (kind < 19) return this.#deleteSnapshot();
    if (this.#random.below(3) === 0) return this.#extend();
  }

  #copyName(): string {
    this.#copies += 1;
    return `${this.#reference}.${this.#copies}`;
  }

  /** Writes the same here and there: noise, text or zeros, on and off the edges of blocks. */
  async #scribble(paths: readonly string[]): Promise<void> {
    const random = this.#random;
    const { size } = await stat(this.#reference);
    const reach = Math.min(size, 3_000 * KiB);
    for (let edits = 1 + random.below(4); edits > 0; edits -= 1) {
      const length = Math.min(reach, 1 + random.below(random.below(2) === 0 ? 4 * KiB : 300 * KiB));
      const atEnd = random.below(4) === 0;
      const offset = (atEnd ? size - reach : 0) + random.below(reach - length + 1);
      const text = `${this.#name} ${random.below(1e9)}`;
      const data = [Buffer.alloc(length), Buffer.alloc(length, text), randomBytesOf(text, length)][random.below(3)];
      for (const path of paths) {
        await using file = await open(path, "r+");
        await file.write(data ?? zeros, 0, length, offset);
      }
    }
  }

  async #backUp(): Promise<void> {
    const snapshot = this.#random.below(4) === 0 ? this.#snapshots.at(-1) : undefined;
    const incremental = this.#backups.length > 0 && this.#random.below(3) > 0;
    const id = await this.#journey.startBackup(this.#volume, {
      incremental,
      ...(snapshot && { snapshot_id: snapshot.id }),
    });
    const image = this.#copyName();
    await copySparse(snapshot?.image ?? this.#reference, image);
    const [row] = await this.#house.sql("SELECT parent_id FROM backups WHERE id = $1", [id]);
    expect(row.parent_id !== null).toBe(incremental);
    const parent = this.#backups.find((backup) => backup.id === row.parent_id);
    if (parent && (await stat(image)).size > (await stat(parent.image)).size) return this.#expectTooLarge(id);
    await this.#journey.settled("backups", id, "available");
    this.#backups.push({ id, image, parent: row.parent_id });
  }

  /** Of an incremental backup of what was extended after its parent: it fails, with a reason, and harms nothing. */
  async #expectTooLarge(id: string): Promise<void> {
    const { fail_reason } = await this.#journey.settled("backups", id, "error");
    expect(fail_reason).toBe("Invalid backup: Volume size increased since the last backup. Do a full backup.");
    await this.#journey.settled("volumes", this.#volume, "available");
    await this.#journey.deleteBackup(id);
  }

  async #takeSnapshot(): Promise<void> {
    const body = { snapshot: { volume_id: this.#volume } };
    const { snapshot } = await this.#journey.accepted("POST", `${base}/snapshots`, body);
    await this.#journey.settled("snapshots", snapshot.id, "available");
    const image = this.#copyName();
    await copySparse(this.#reference, image);
    this.#snapshots.push({ id: snapshot.id, image, parent: null });
  }

  async #restoreOnto(): Promise<void> {
    const backup = this.#backups[this.#random.below(Math.max(1, this.#backups.length))];
    if (!backup) return;
    await this.#journey.restore(backup.id, this.#volume);
    await overlay(backup.image, this.#reference);
    await this.#expectSame(this.#volume, this.#reference, `${this.#name}: restored onto the volume`);
  }

  async #restoreBeside(backup: Stored): Promise<void> {
    const target = await this.#journey.restore(backup.id);
    await this.#expectSame(target, backup.image, `${this.#name}: restored beside`);
    await this.#gone("volumes", target);
  }

  async #expectSame(volume: string, image: string, what: string): Promise<void> {
    const [there, wanted] = await Promise.all([digestOf(this.#journey.volumeFile(volume)), digestOf(image)]);
    expect(there, what).toBe(wanted);
  }

  /** One that others build on is refused, any other goes. */
  async #deleteBackup(): Promise<void> {
    const at = this.#random.below(Math.max(1, this.#backups.length));
    const backup = this.#backups[at];
    if (!backup) return;
    if (!this.#backups.some(({ parent }) => parent === backup.id)) {
      await this.#journey.deleteBackup(backup.id);
      this.#backups.splice(at, 1);
      return;
    }
    expect((await this.#house.request("DELETE", `${base}/backups/${backup.id}`)).status).toBe(400);
  }

  async #deleteSnapshot(): Promise<void> {
    const snapshot = this.#snapshots.shift();
    if (snapshot) await this.#gone("snapshots", snapshot.id);
  }

  async #extend(): Promise<void> {
    const { size } = await stat(this.#reference);
    const sizeGib = Math.ceil(size / GiB) + 1;
    if (sizeGib > 2) return;
    await this.#journey.accepted("POST", `${base}/volumes/${this.#volume}/action`, {
      "os-extend": { new_size: sizeGib },
    });
    await this.#journey.settled("volumes", this.#volume, "available");
    await truncate(this.#reference, sizeGib * GiB);
  }

  async #gone(resource: "volumes" | "snapshots", id: string): Promise<void> {
    await this.#journey.accepted("DELETE", `${base}/${resource}/${id}`);
    const gone = async () => (await this.#house.request("GET", `${base}/${resource}/${id}`)).status === 404;
    await this.#house.waitFor(gone, { what: `${id} is gone`, timeoutMs: patienceMs });
  }

  async #removeAll(): Promise<void> {
    await this.#expectSame(this.#volume, this.#reference, `${this.#name}: the volume itself`);
    for (const { id } of this.#backups.toReversed()) await this.#journey.deleteBackup(id);
    for (const { id } of this.#snapshots) await this.#gone("snapshots", id);
    await this.#gone("volumes", this.#volume);
    for (const { image } of [...this.#backups, ...this.#snapshots]) await rm(image, { force: true });
    for (let i = 0; i <= this.#copies; i += 1)
      await rm(i === 0 ? this.#reference : `${this.#reference}.${i}`, { force: true });
  }
}

it(`a backup restores to what its volume or snapshot was, whatever else was done to them (seed ${seed})`, {
  timeout: asked === undefined ? 300_000 : 24 * 3_600_000,
}, async () => {
  await using house = await startInstance({ config, repository });
  const wanted = asked === undefined ? Number.POSITIVE_INFINITY : Number(asked);
  const endAt = asked === undefined ? performance.now() + sampleMs : Number.POSITIVE_INFINITY;
  let [begun, done, steps] = [0, 0, 0];
  const lane = async (): Promise<void> => {
    while (begun < wanted && performance.now() < endAt) {
      const run = seed + begun;
      begun += 1;
      const taken = await new History(house, run).run();
      steps += taken;
      done += 1;
      if (done % 20 === 0) process.stdout.write(`histories: ${done} of ${steps} steps so far\n`);
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  await journeyOn(house, { patienceMs }).expectQuiet();
  expect(done).toBe(begun);
  process.stdout.write(`histories: seed ${seed}, ${done} histories of ${steps} steps: 0 mismatches\n`);
});
