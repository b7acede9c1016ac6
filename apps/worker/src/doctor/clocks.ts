import { openHttpClient } from "@tephra/openstack";
import { type Finding, warning } from "./finding.ts";

/** Clocks further apart than this make times in logs hard to compare. */
const apartMsMax = 5_000;
const answerMs = 10_000;

/** A server's clock beside this machine's. `aroundMs`: this machine's time, halfway between question and answer. */
export function compareClocks(subject: string, serverMs: number, aroundMs: number, remedy: string): Finding[] {
  const apartMs = Math.abs(serverMs - aroundMs);
  if (apartMs <= apartMsMax) return [];
  return [warning(subject, `its clock differs from this machine's by ${(apartMs / 1000).toFixed(1)} s`, remedy)];
}

/** By the header `Date` of any answer, in whole seconds; an answer without one says nothing. */
export function compareDate(subject: string, date: string | null, aroundMs: number, remedy: string): Finding[] {
  const ms = Date.parse(date ?? "");
  return Number.isNaN(ms) ? [] : compareClocks(subject, ms, aroundMs, remedy);
}

/** The clock of the store of a repository that is reached over HTTP. Whether it can be reached at all is asked elsewhere. */
export async function checkStoreClock(subject: string, repositoryUrl: string): Promise<Finding[]> {
  const parameters = new URLSearchParams(repositoryUrl.split("?")[1] ?? "");
  const address = parameters.get("endpoint") ?? parameters.get("auth_url");
  if (address === null) return [];
  try {
    const asked = Date.now();
    const signal = AbortSignal.timeout(answerMs);
    const response = await openHttpClient(parameters.get("ca")).ask(address, { signal });
    await response.body?.cancel();
    const advice = "Synchronize both with a time server: stores refuse requests that seem to be old.";
    return compareDate(subject, response.headers.get("date"), (asked + Date.now()) / 2, advice);
  } catch {
    return [];
  }
}
