import { mkdtempSync, rmSync } from "node:fs";
import { copyFile, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { type BackupReference, type Engine, openEngine } from "@tephra/engine";
import { freeContext } from "../../format/backup-fixture.ts";
import { type Damage, damagesOf, filesOf, forms, kinds, makeChain, tryRestore } from "../../format/damages.ts";
import type { FaultOptions } from "./runs.ts";

const rounds = 4;
/** Restores of chains that nothing is wrong with. */
const cleanRestores = 500;

/** The same damages that the suite of the format brings, as far as an operator meets them. */
const matrixOf = (seed: number): [name: string, damage: Damage][] => {
  const all = damagesOf(seed);
  const picked = ["one flipped bit", "truncated", "swapped with another of its kind", "deleted"];
  const chosen = picked.map((name): [string, Damage] => [name, all[name] as Damage]);
  return [...chosen, ["replaced by the one of another backup", (file, other) => copyFile(other, file)]];
};

interface Tally {
  damages: number;
  detected: number;
  named: number;
  /** A flipped bit in an entry of the metadata shows as the object that does not fit it any more: that one is named. */
  misfits: number;
  /** Not detected, and no byte of the volume is another one for it: a bit in a description, or in a compressed stream that says the same without it. */
  harmless: string[];
  wrong: string[];
  clean: number;
  falseAlarms: number;
}

type Chain = Awaited<ReturnType<typeof makeChain>>;

/** Restores every state of a chain as it is. */
async function restoreClean(engine: Engine, { chain, volume }: Chain, tally: Tally): Promise<void> {
  const { damaged } = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
  const { outcome } = await tryRestore(engine, chain, volume);
  tally.clean += 1;
  if (outcome !== "exact" || damaged.length > 0) tally.falseAlarms += 1;
}

/** Damages one object, looks whether that is noticed, and mends it. */
async function damageOne(
  engine: Engine,
  { chain, volume }: Chain,
  { what, files, damage, tally }: { what: string; files: [string, string]; damage: Damage; tally: Tally },
): Promise<void> {
  const [file, other] = files;
  const saved = await Promise.all(files.map((path) => readFile(path)));
  await damage(file, other);
  tally.damages += 1;
  // The backup whose object it is, with what that builds on: it needs all of its own objects.
  const own = chain.findIndex(({ container }) => file.includes(`/${container}/`));
  const members: readonly BackupReference[] = chain.slice(own);
  const { damaged } = await engine.verifyBackup({ chain: members, mode: "deep" }, freeContext());
  const restored = await tryRestore(engine, chain, volume).catch((error: Error) => ({ outcome: error.message }));
  const names = damaged.map(({ object }) => object);
  if (names.length > 0) tally.detected += 1;
  if (names.includes(basename(file))) tally.named += 1;
  else if (names.length > 0 && what.includes("_metadata one flipped bit")) tally.misfits += 1;
  else if (names.length > 0) tally.wrong.push(`${what}: ${names.join(", ")} was named`);
  else if (what.includes("one flipped bit") && restored.outcome === "exact") tally.harmless.push(what);
  else tally.wrong.push(`${what}: not detected`);
  if (restored.outcome.startsWith("WRONG")) tally.wrong.push(`${what}: ${restored.outcome}`);
  await Promise.all(files.map((path, index) => writeFile(path, saved[index] as Buffer)));
}

async function runRound(engine: Engine, seed: number, tally: Tally): Promise<void> {
  for (const form of forms) {
    const folder = mkdtempSync(join(tmpdir(), "tephra-corruption-"));
    try {
      const chain = await makeChain(engine, join(folder), form);
      const foreign = await makeChain(engine, mkdtempSync(join(folder, "other-")), form);
      await restoreClean(engine, chain, tally);
      for (const [kind, pattern] of Object.entries(kinds)) {
        const files = await filesOf(chain.root, chain.chain, pattern);
        const others = await filesOf(foreign.root, foreign.chain, pattern);
        for (const [name, damage] of matrixOf(seed)) {
          for (const [index, file] of files.entries()) {
            const pool = name.startsWith("replaced") ? others : files;
            const other = pool[(index + 1) % pool.length] as string;
            const what = `${form}: ${kind} ${basename(file)} ${name}`;
            await damageOne(engine, chain, { what, files: [file, other], damage, tally });
          }
        }
      }
      await restoreClean(engine, chain, tally);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

async function restoreManyClean(engine: Engine, wanted: number, tally: Tally): Promise<void> {
  for (let turn = 0; tally.clean < wanted; turn++) {
    const folder = mkdtempSync(join(tmpdir(), "tephra-corruption-"));
    try {
      const chain = await makeChain(engine, folder, forms[turn % forms.length] ?? "none");
      for (let left = 10; left > 0 && tally.clean < wanted; left--) await restoreClean(engine, chain, tally);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

/** Every damage in each class of object, and as many clean restores (500). */
export async function runCorruption({ seed, runs, say }: FaultOptions): Promise<boolean> {
  const tally: Tally = {
    damages: 0,
    detected: 0,
    named: 0,
    misfits: 0,
    harmless: [],
    wrong: [],
    clean: 0,
    falseAlarms: 0,
  };
  await using engine = openEngine({ threads: 2 });
  for (let round = 0; round < rounds; round++) {
    await runRound(engine, seed + round, tally);
    say(`round ${round + 1} of ${rounds}: ${tally.damages} damages`);
  }
  await restoreManyClean(engine, runs ?? cleanRestores, tally);
  for (const what of tally.harmless) process.stdout.write(`without effect: ${what}\n`);
  for (const what of tally.wrong) process.stdout.write(`WRONG: ${what}\n`);
  const { damages, detected, named, misfits, harmless, wrong, clean, falseAlarms } = tally;
  const flipped = `${misfits} by the object that a flipped bit of its entry does not fit, ${harmless.length} flipped bits without effect on any byte`;
  process.stdout.write(
    `corruption: seed ${seed}, ${damages} damages: ${detected} detected, ${named} of them named, ${flipped}, ${wrong.length} wrong; ${clean} clean restores, ${falseAlarms} false alarms\n`,
  );
  return wrong.length === 0 && falseAlarms === 0;
}
