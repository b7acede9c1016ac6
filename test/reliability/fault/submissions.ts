import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { poll } from "../../../scripts/poll.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { project } from "../../kit/house.ts";
import { Random } from "../fuzz/random.ts";
import { findOrphans, findStuck } from "./checker.ts";
import { flushRedis } from "./faults.ts";
import { ask, graceMs, pause, rested, rowsOf } from "./model.ts";
import { addNew, type FaultHouse, type FaultOptions, newTally, openFaultHouse, reap, removeAll } from "./runs.ts";

const clients = 8;
const volumesEach = 4;
/** A point that is not reached for so long gives way to the next. */
const pointMaxMs = 30_000;
/**
 * Around the transaction of a submission: before it, before each of its statements, before and after its commit, after the answer; where one
 * statement is the transaction, before and after it.
 */
const points = [
  "request.received",
  "change.begin",
  "change.committed",
  "transaction.begin",
  ...[1, 2, 3, 4, 5, 6, 7].map((statement) => `transaction.statement-${statement}`),
  "transaction.commit",
  "transaction.committed",
  "request.answered",
];

interface Submission {
  name: string;
  /** Null when the answer was lost. */
  id: string | null;
}

async function makeVolumes(house: FaultHouse, seed: number): Promise<string[]> {
  const folder = join(house.dir, "images");
  mkdirSync(folder, { recursive: true });
  const ids: string[] = [];
  for (let index = 0; index < clients * volumesEach; index++) {
    const path = join(folder, `${index}.img`);
    writeFileSync(path, randomBytesOf(`${seed} ${index}`, 20_000));
    const body = { path, project_id: project };
    const { operation } = await house.call<{ operation: { id: string } }>("POST", "/ops/volumes/import", body);
    ids.push((await house.finished({ id: operation.id })).volume_id ?? "");
  }
  return ids;
}

/** The API is being started again, or what was asked for before has come to be after all: the next one can be asked for when it answers. */
async function answering(house: FaultHouse): Promise<void> {
  const alive = async (): Promise<boolean> => (await fetch(`${house.url}/healthz`)).ok;
  await poll(alive, { what: "the API answers", timeoutMs: graceMs, everyMs: 20 });
}

/** Sends submissions for its volumes in turn; a volume is asked for again when its backup rests. */
async function submit(
  house: FaultHouse,
  { volumes, wanted, sent }: { volumes: readonly string[]; wanted: number; sent: Submission[] },
): Promise<void> {
  for (let turn = 0; sent.length < wanted; turn++) {
    const volume = volumes[turn % volumes.length] ?? "";
    await rested(house, "volumes", volume);
    if (sent.length >= wanted) return;
    const submission: Submission = { name: `submission ${sent.length}`, id: null };
    sent.push(submission);
    // Every other one on the one before: the parent is looked for in the same transaction.
    const incremental = Math.floor(turn / volumes.length) % 2 === 1;
    const body = { backup: { volume_id: volume, name: submission.name, incremental } };
    const outcome = await ask<{ backup: { id: string } }>(house, "POST", "/backups", body);
    if (outcome.kind === "accepted") submission.id = outcome.answer.backup.id;
    else await answering(house);
  }
}

/** The API dies at one point after the other, and Redis is emptied now and then, until all is sent. Returns how often it died at each. */
async function disturb(
  house: FaultHouse,
  { random, done }: { random: Random; done: () => boolean },
): Promise<{ deaths: Map<string, number>; flushes: number }> {
  const deaths = new Map<string, number>(points.map((point) => [point, 0]));
  let flushes = 0;
  for (let turn = 0; !done(); turn++) {
    const point = points[turn % points.length] ?? "";
    await house.restartApi("SIGKILL", crashAt(`${point}:${1 + random.below(15)}`));
    const doomed = house.api();
    const flushAfter = random.below(1_500);
    await Promise.race([doomed.exited, pause(flushAfter)]);
    await flushRedis(house.services.redisUrl);
    flushes += 1;
    const givenUpAt = performance.now() + pointMaxMs;
    while (doomed.running() && !done() && performance.now() < givenUpAt) {
      await Promise.race([doomed.exited, pause(200)]);
    }
    if (!doomed.running()) deaths.set(point, (deaths.get(point) ?? 0) + 1);
  }
  await house.restartApi("SIGKILL");
  return { deaths, flushes };
}

/** What the rows say of the submissions: each of these lists must be empty. */
async function judge(house: FaultHouse, sent: readonly Submission[]): Promise<{ lost: string[]; twice: string[] }> {
  const rows = await rowsOf<{ id: string; name: string; status: string; creations: number; ends: number }>(
    house,
    `SELECT b.id, b.name, b.status,
      (SELECT count(*)::int FROM operations o WHERE o.backup_id = b.id AND o.kind = 'backup-create') AS creations,
      (SELECT count(*)::int FROM notifications n
        WHERE n.event_type = 'backup.create.end' AND n.payload->>'backup_id' = b.id::text) AS ends
     FROM backups b`,
  );
  const byName = Map.groupBy(rows, ({ name }) => name);
  const byId = new Map(rows.map((row) => [row.id, row]));
  const lost = sent.filter(({ id }) => id !== null && !["available", "error"].includes(byId.get(id)?.status ?? ""));
  const known = new Set(sent.map(({ name }) => name));
  const phantoms = rows.filter(({ name }) => !known.has(name));
  const doubled = [...byName.values()].filter((same) => same.length > 1).flat();
  const executedTwice = rows.filter(({ creations, ends }) => creations !== 1 || ends > 1);
  return {
    lost: lost.map(({ name, id }) => `${name} (${id})`),
    twice: [...phantoms, ...doubled, ...executedTwice].map(({ name, id }) => `${name} (${id})`),
  };
}

/** As many submissions (2,000) while the API is killed around its transaction and Redis is emptied. */
export async function runSubmissions({ seed, runs, store, say }: FaultOptions): Promise<boolean> {
  const wanted = runs ?? 2_000;
  const sent: Submission[] = [];
  await using house = await openFaultHouse({ workers: 2, store, say });
  const volumes = await makeVolumes(house, seed);
  const lanes = Array.from({ length: clients }, (_, lane) => volumes.filter((_, index) => index % clients === lane));
  let finished = false;
  const disturbing = disturb(house, { random: new Random(seed), done: () => finished });
  await Promise.all(lanes.map((own) => submit(house, { volumes: own, wanted, sent }))).finally(() => {
    finished = true;
  });
  const { deaths, flushes } = await disturbing;
  const { findings } = newTally();
  findings.stuck.push(...(await findStuck(house)));
  const { lost, twice } = await judge(house, sent);
  const answered = sent.filter(({ id }) => id !== null).length;
  const [rows] = await rowsOf<{ all: number; failed: number }>(
    house,
    `SELECT count(*)::int AS all, count(*) FILTER (WHERE status = 'error')::int AS failed FROM backups`,
  );
  await reap(house, findings);
  addNew(findings.orphans, await findOrphans(house));
  await removeAll(house);
  await reap(house, findings);
  addNew(findings.orphans, await findOrphans(house));
  for (const what of [...lost, ...twice, ...findings.stuck, ...findings.orphans]) say(what);
  const counted = [...deaths].map(([point, count]) => `${count} × ${point}`).join(", ");
  const killed = [...deaths.values()].reduce((sum, count) => sum + count, 0);
  const lines = [
    `the API was killed ${killed} times at ${deaths.size} points (${counted}), Redis emptied ${flushes} times`,
    `${answered} of ${sent.length} answers arrived; ${rows?.all} backups came to be, ${rows?.failed} of them ended in error`,
    `submissions: seed ${seed}, ${sent.length} submissions: ${lost.length} lost, ${twice.length} executed twice, ${findings.stuck.length} stuck, ${findings.orphans.length} orphans`,
  ];
  for (const line of lines) process.stdout.write(`${line}\n`);
  const missed = [...deaths].filter(([, count]) => count === 0).map(([point]) => point);
  for (const point of missed) process.stdout.write(`not reached: ${point}\n`);
  return [lost, twice, findings.stuck, findings.orphans, missed].every((found) => found.length === 0);
}
