import { createHash, randomUUID } from "node:crypto";
import { expect } from "vitest";
import { type Instance, type Reply, startInstance } from "../../../kit/instance.ts";
import { Names, type Speaker } from "./exchange.ts";

/** The recorded run's own name: one request spells it in capitals. */
const run = "cfbd517e4b";

/** Project a's id without dashes is what a recorded request writes with dashes. */
const projects: Record<Speaker, string> = {
  a: "2c9a55a909ba4bff9eb2d3dff1008717",
  b: "b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0",
  admin: "adadadadadadadadadadadadadadadad",
};

const tokenOf = (speaker: Speaker, role: string) => ({
  sha256: createHash("sha256").update(`token-${speaker}`).digest("hex"),
  user_id: `${projects[speaker].slice(0, 6)}00000000000000000000000000`,
  project_id: projects[speaker],
  roles: [role],
});

const config = {
  auth: { mode: "static", tokens: [tokenOf("a", "member"), tokenOf("b", "member"), tokenOf("admin", "admin")] },
  quotas: { backups: 100, volumes: 100 },
};

/** A server with the recorded run's fixtures, and what its projects can ask of it. */
export interface Stage extends AsyncDisposable {
  readonly instance: Instance;
  readonly names: Names;
  /** Asks as a project, at a microversion's minor number. @throws when the answer is not a success */
  ask(as: Speaker, method: string, path: string, body?: unknown, minor?: number): Promise<Reply>;
  /** Every operation that was accepted has ended. */
  settled(): Promise<void>;
}

export async function openStage(): Promise<Stage> {
  await using stack = new AsyncDisposableStack();
  const instance = stack.use(await startInstance({ config }));
  const names = new Names();
  names.set("run", run);
  const unknown = randomUUID();
  names.set("unknown", unknown);
  names.set("unknown_upper", unknown.toUpperCase());
  names.set("unknown_undashed", unknown.replaceAll("-", ""));
  for (const speaker of ["a", "b", "admin"] as const) {
    names.set(`proj_${speaker}`, projects[speaker]);
    names.set(`user_${speaker}`, tokenOf(speaker, "member").user_id);
  }
  const ask: Stage["ask"] = async (as, method, path, body, minor = 0) => {
    const headers = { "x-auth-token": `token-${as}`, "openstack-api-version": `volume 3.${minor}` };
    const reply = await instance.request(method, `/v3/${projects[as]}/${path}`, body, headers);
    expect(reply.status, `${method} ${path}: ${reply.text}`).toBeLessThan(300);
    return reply;
  };
  const settled = async (): Promise<void> => {
    const unfinished = "SELECT 1 FROM tasks WHERE state IN ('ready', 'dispatched', 'running', 'blocked')";
    await instance.waitFor(async () => (await instance.sql(unfinished)).length === 0, {
      what: "every task has ended",
      timeoutMs: 60_000,
    });
  };
  const stage = { instance, names, ask, settled };
  await makeFixtures(stage);
  const owned = stack.move();
  return { ...stage, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function makeFixtures({ instance, names, ask, settled }: Omit<Stage, typeof Symbol.asyncDispose>): Promise<void> {
  const volume = async (as: Speaker, name: string, size: number): Promise<void> => {
    const { body } = await ask(as, "POST", "volumes", { volume: { size, name: `${run}-${name}` } });
    names.set(name, body.volume.id);
  };
  const snapshot = async (name: string, of: string): Promise<void> => {
    const { body } = await ask("a", "POST", "snapshots", { snapshot: { volume_id: names.get(of), name } });
    names.set(name, body.snapshot.id);
  };
  await volume("a", "vol_a1", 1);
  await volume("a", "vol_a2", 2);
  for (const name of ["vol_fresh", "vol_inuse", "vol_err"]) await volume("a", name, 1);
  await volume("b", "vol_b1", 1);
  await volume("admin", "vol_adm", 1);
  await settled();
  await snapshot("snap_a1", "vol_a1");
  await snapshot("snap_a2", "vol_a2");
  const attach = { instance_uuid: randomUUID(), mountpoint: "/dev/vdb" };
  await ask("a", "POST", `volumes/${names.get("vol_inuse")}/action`, { "os-attach": attach });
  await instance.sql("UPDATE volumes SET status = 'error' WHERE id = $1", [names.get("vol_err")]);
  await settled();
}
