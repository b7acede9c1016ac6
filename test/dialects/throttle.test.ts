import { expect, it } from "vitest";
import { startApiOnly } from "./api-only.ts";

const [mine, others] = ["0a", "0b"];
const as = (project: string | undefined) => ({ "x-auth-token": `somebody:${project}` });

it("answers a project that asks too often with 413 or 429 and when to come again, and nobody else", async () => {
  await using instance = await startApiOnly({ config: { rate_limits: { requests: 5, window_seconds: 3600 } } });
  const list = (project: string | undefined) => instance.request("GET", "/v3/volumes", undefined, as(project));
  for (let i = 0; i < 5; i += 1) expect((await list(mine)).status).toBe(200);
  const refused = await list(mine);
  expect(refused.status).toBe(413);
  const seconds = Number(refused.headers.get("retry-after"));
  expect(seconds).toBeGreaterThan(1800);
  expect(seconds).toBeLessThanOrEqual(3600);
  expect(refused.body).toEqual({
    overLimit: { code: 413, message: "This request was rate-limited.", retryAfter: String(seconds) },
  });
  const ops = await instance.request("GET", "/ops/operations", undefined, as(mine));
  expect([ops.status, Object.keys(ops.body)]).toEqual([429, ["overLimit"]]);
  expect(Number(ops.headers.get("retry-after"))).toBeGreaterThan(1800);
  expect((await list(others)).status).toBe(200);
  expect((await instance.request("GET", "/healthz")).status).toBe(200);
});

it("counts changes apart, lets a project on when its time has come, and is off unless it is asked for", async () => {
  await using instance = await startApiOnly({
    config: { rate_limits: { changes: 1, window_seconds: 2 }, quotas: { volumes: -1, gigabytes: -1 } },
  });
  const body = { volume: { size: 1 } };
  const make = async () => (await instance.request("POST", "/v3/volumes", body, as(mine))).status;
  const until = (status: number) =>
    instance.waitFor(async () => (await make()) === status, {
      what: `a change is answered ${status}`,
      timeoutMs: 60_000,
    });
  await until(202);
  await until(413);
  expect((await instance.request("GET", "/v3/volumes", undefined, as(mine))).status).toBe(200);
  await until(202);
});
