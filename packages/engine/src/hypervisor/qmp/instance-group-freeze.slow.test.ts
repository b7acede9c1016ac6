import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, type TestContext, test } from "vitest";
import { type GuestFilesystem, needsGuest, startGuestAgent } from "../../../../../test/kit/guest-agent.ts";
import { freezeWhile } from "./freeze-while.ts";
import { GuestAgent } from "./guest-agent.ts";

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-ga-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

test("a socket behind which no agent answers is no agent, and neither is one on which nobody listens", async () => {
  const server = createServer((socket) => void socket.on("error", () => {})).listen(join(home, "silent"));
  try {
    expect(await GuestAgent.connect(join(home, "silent"), [home])).toBeNull();
    expect(await GuestAgent.connect(join(home, "missing"), [home])).toBeNull();
  } finally {
    server.close();
  }
});

test("without an agent the work is done all the same, and the reason is told", async () => {
  const done = await freezeWhile(null, { mountpoints: null, limitMs: 10_000 }, async () => 7);
  expect(done).toEqual({ result: 7, frozenMs: null, notFrozenBecause: "no guest agent answers" });
});

describe("a real agent that freezes a private loop mount, and nothing else", () => {
  /** Starts a guest, unless this user cannot: mounting needs root. */
  async function guest(context: TestContext): Promise<GuestFilesystem> {
    needsGuest(context);
    return await startGuestAgent(home);
  }

  async function attach({ agentSocket }: GuestFilesystem): Promise<GuestAgent> {
    const agent = await GuestAgent.connect(agentSocket, [home]);
    if (agent === null) throw new Error("no agent");
    return agent;
  }

  /** A write to the file system by another process: it blocks while the file system is frozen. */
  function write({ folder }: GuestFilesystem): { ended: () => boolean; end: Promise<unknown> } {
    const child = spawn("/bin/sh", ["-c", `echo x > ${join(folder, "written")}`], { stdio: "ignore" });
    let ended = false;
    const end = once(child, "close").then(() => {
      ended = true;
    });
    return { ended: () => ended, end };
  }

  test("writes wait while it is frozen and go on right after", async (context) => {
    await using filesystem = await guest(context);
    using agent = await attach(filesystem);
    const freeze = { mountpoints: [filesystem.mountpoint], limitMs: 60_000 };
    const done = await freezeWhile(agent, freeze, async () => {
      expect(await agent.isFrozen()).toBe(true);
      const writing = write(filesystem);
      await delay(300);
      expect(writing.ended()).toBe(false);
      return writing;
    });
    await done.result.end;
    expect(done.notFrozenBecause).toBeNull();
    expect(done.frozenMs).toBeGreaterThanOrEqual(300);
    expect(await agent.isFrozen()).toBe(false);
  });

  test("it is thawed when the work throws", async (context) => {
    await using filesystem = await guest(context);
    using agent = await attach(filesystem);
    const work = freezeWhile(agent, { mountpoints: [filesystem.mountpoint], limitMs: 60_000 }, async () => {
      expect(await agent.isFrozen()).toBe(true);
      throw new Error("the snapshot failed");
    });
    await expect(work).rejects.toThrow("the snapshot failed");
    expect(await agent.isFrozen()).toBe(false);
    await write(filesystem).end;
  });

  test("it is thawed at the limit, while the work goes on", async (context) => {
    await using filesystem = await guest(context);
    using agent = await attach(filesystem);
    const done = await freezeWhile(agent, { mountpoints: [filesystem.mountpoint], limitMs: 500 }, async () => {
      await write(filesystem).end; // Completes only once the guest is thawed, so the thaw must come before this function returns.
      return "written";
    });
    expect(done).toEqual({
      result: "written",
      frozenMs: expect.any(Number),
      notFrozenBecause: "it took longer than 0.5 s",
    });
    expect(await agent.isFrozen()).toBe(false);
  });

  test("a guest that refuses to freeze is no error, and is not left half frozen", async (context) => {
    await using filesystem = await guest(context);
    using agent = await attach(filesystem);
    const all = await freezeWhile(agent, { mountpoints: null, limitMs: 60_000 }, async () => "done");
    expect(all).toMatchObject({ result: "done", frozenMs: null });
    expect(all.notFrozenBecause).toMatch(/^The guest agent refuses guest-fsfreeze-freeze: .*disabled/);
    const none = await freezeWhile(agent, { mountpoints: ["/nowhere"], limitMs: 60_000 }, async () => "done");
    expect(none).toEqual({
      result: "done",
      frozenMs: null,
      notFrozenBecause: "the guest agent found no file system to freeze",
    });
    expect(await agent.isFrozen()).toBe(false);
  });

  test("what a client before left, a frozen guest and replies never read, is found and put right", async (context) => {
    await using filesystem = await guest(context);
    const gone = connect({ path: filesystem.agentSocket });
    const freeze = { execute: "guest-fsfreeze-freeze-list", arguments: { mountpoints: [filesystem.mountpoint] } };
    gone.write(`{"execute":"guest-ping"}\n{"execute":"guest-info"}\n${JSON.stringify(freeze)}\n{"exec`);
    await once(gone, "data");
    gone.destroy();
    using agent = await attach(filesystem);
    expect(await agent.isFrozen()).toBe(true);
    const done = await freezeWhile(agent, { mountpoints: [filesystem.mountpoint], limitMs: 60_000 }, async () => 1);
    expect(done.result).toBe(1);
    expect(await agent.isFrozen()).toBe(false);
    await write(filesystem).end;
  });
});
