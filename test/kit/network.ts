import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { projectNode, root } from "../../scripts/bootstrap.mjs";
import { poll } from "../../scripts/poll.ts";
import type { Place } from "./programs.ts";

const run = promisify(execFile);
/** Nobody has this hardware address: what is sent to it arrives, and is ignored. */
const nobody = "02:00:00:00:ff:ff";
/** A packet of 1,500 bytes takes a quarter of a second. */
const slowRate = ["rate", "48kbit", "burst", "1600", "latency", "5s"];

/** The way from a host to a server and back, each of a network card of its own. */
export interface Link {
  host: string;
  server: string;
  /** What is sent is lost, in either direction, and nobody is told. */
  cut(): Promise<void>;
  slow(): Promise<void>;
  heal(): Promise<void>;
}

/** Hosts that reach servers on this machine, each by a link of its own. */
export interface Network extends AsyncDisposable {
  places: readonly [Place, ...Place[]];
  links: readonly Link[];
  /** Where all hosts reach a server. */
  addressOf(server: string): string;
}

/** Network namespaces can be made, and this process is in one of its own: nothing outside is reached, or reaches it. */
export const inNetworkOfItsOwn = process.env["TEPHRA_TEST_NETWORK"] === "own";

/** Runs this program again, in a network of its own. @returns its exit status */
export async function rerunInNetworkOfItsOwn(): Promise<number> {
  const { execPath, execArgv, argv, env } = process;
  const again = spawn("unshare", ["--net", "--", execPath, ...execArgv, ...argv.slice(1)], {
    env: { ...env, TEPHRA_TEST_NETWORK: "own" },
    stdio: "inherit",
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => again.kill(signal));
  const [code] = (await once(again, "exit")) as [number | null];
  return code ?? 1;
}

const users = "its users";

/**
 * Hosts as network namespaces of Linux, which end with this process. Needs root, iproute2 and a network of its own (see above). The first
 * bytes of all addresses are 10.201; `addressOf` is the same from everywhere.
 */
export async function openNetwork(hosts: readonly [string, ...string[]], servers: readonly string[]): Promise<Network> {
  await using stack = new AsyncDisposableStack();
  const stops = stack.use(new DisposableStack());
  await run("ip", ["link", "set", "lo", "up"]);
  const links: Link[] = [];
  const places: Place[] = [];
  const addressOf = (server: string): string => `10.201.0.${[...servers, users].indexOf(server) + 1}`;
  for (const [at, host] of hosts.entries()) {
    const holder = spawn("unshare", ["--net", "--", "sleep", "infinity"], { stdio: "ignore" });
    stack.defer(() => void holder.kill("SIGKILL"));
    await once(holder, "spawn");
    const prefix = ["nsenter", `--net=/proc/${holder.pid}/ns/net`, "--"] as const;
    const there = (command: string, ...args: string[]) => run(prefix[0], [...prefix.slice(1), command, ...args]);
    const here = (command: string, ...args: string[]) => run(command, args);
    // Until it has got another one, its network is this process's.
    const apart = async (): Promise<boolean> =>
      (await readlink(`/proc/${holder.pid}/ns/net`)) !== (await readlink("/proc/self/ns/net"));
    await poll(apart, { what: `${host} has a network of its own`, timeoutMs: 10_000, everyMs: 5 });
    await there("ip", "link", "set", "lo", "up");
    for (const [index, server] of [...servers, users].entries()) {
      const [near, far] = [`t${at}s${index}`, `t${at}h${index}`];
      const [nearAddress, farAddress] = [addressOf(server), `10.201.${at + 1}.${index + 1}`];
      await here("ip", "link", "add", "name", near, "type", "veth", "peer", "name", far);
      await here("ip", "link", "set", "dev", far, "netns", `${holder.pid}`);
      const ends = [
        { ask: here, card: near, own: nearAddress, other: farAddress, hardware: `02:00:00:00:0${at + 1}:1${index}` },
        { ask: there, card: far, own: farAddress, other: nearAddress, hardware: `02:00:00:00:0${at + 1}:2${index}` },
      ] as const;
      const neighbours = async (lost: boolean): Promise<void> => {
        for (const [end, { ask, card, other }] of ends.entries()) {
          const hardware = lost ? nobody : (ends[1 - end]?.hardware ?? "");
          await ask("ip", "neigh", "replace", other, "lladdr", hardware, "dev", card, "nud", "permanent");
        }
      };
      for (const { ask, card, own, other, hardware } of ends) {
        await ask("ip", "link", "set", "dev", card, "address", hardware);
        await ask("ip", "addr", "add", own, "peer", other, "dev", card);
        await ask("ip", "link", "set", "dev", card, "up");
      }
      await neighbours(false);
      if (server === users) {
        const publish = async (port: number): Promise<void> => {
          const relay = [projectNode(), join(root, "test/kit/relay.ts"), farAddress, `${port}`];
          const [command, ...args] = [...prefix, ...relay];
          const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
          stops.defer(() => void child.kill("SIGKILL"));
          await once(child.stdout, "data");
        };
        places.push({ prefix, address: farAddress, publish });
      } else {
        links.push({
          host,
          server,
          cut: () => neighbours(true),
          slow: async () => {
            for (const { ask, card } of ends)
              await ask("tc", "qdisc", "replace", "dev", card, "root", "tbf", ...slowRate);
          },
          heal: async () => {
            await neighbours(false);
            for (const { ask, card } of ends) await ask("tc", "qdisc", "del", "dev", card, "root").catch(() => {});
          },
        });
      }
    }
  }
  const owned = stack.move();
  const [first, ...others] = places;
  if (first === undefined) throw new Error("a network without hosts");
  return { places: [first, ...others], links, addressOf, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
