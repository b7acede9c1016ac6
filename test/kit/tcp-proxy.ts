import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/** A fault in a server's responses while it is active. Requests always arrive: only their outcome becomes unknown. */
export type Trouble =
  /** Every chunk is delayed by this long. */
  | { kind: "late"; ms: number }
  /** Connections are reset, including every new one. */
  | { kind: "cut" }
  /** Half of a chunk arrives, then the connection is reset. */
  | { kind: "half" }
  /** The server has responded, none of it arrives, and the connection is reset. */
  | { kind: "lost" }
  /** A few bytes at a time. */
  | { kind: "trickle" }
  /** Existing connections stay open but carry nothing any more, in either direction, permanently. New ones work. */
  | { kind: "silent" };

export interface TcpProxy extends AsyncDisposable {
  readonly port: number;
  /** The URL for reaching a server through the proxy. */
  through(url: string): string;
  /** Activates a fault from now on; null: none. */
  trouble(trouble: Trouble | null): void;
  /** How many connections have fallen silent and have not been closed by their client. */
  silentConnections(): number;
}

const trickleBytes = 512;
const trickleMs = 20;

/** A protocol-agnostic proxy in front of a real local server, at `host`. New connections go to the current `target`. */
export async function startTcpProxy(target: { port: number | string }, host = "127.0.0.1"): Promise<TcpProxy> {
  const sockets = new Set<Socket>();
  const silent = new WeakSet<Socket>();
  const clients = new Set<Socket>();
  const unclosed = new Set<Socket>();
  let current: Trouble | null = null;
  const answer = async (server: Socket, client: Socket): Promise<void> => {
    for await (const chunk of server as AsyncIterable<Buffer>) {
      const trouble: Trouble | null = current;
      if (silent.has(client)) return void (await once(client, "close"));
      if (trouble?.kind === "lost") return void client.resetAndDestroy();
      if (trouble?.kind === "late") await delay(trouble.ms);
      if (trouble?.kind === "half") {
        client.write(chunk.subarray(0, chunk.length >> 1), () => client.resetAndDestroy());
        return;
      }
      const pieceBytes = trouble?.kind === "trickle" ? trickleBytes : chunk.length;
      for (let at = 0; at < chunk.length; at += pieceBytes) {
        if (at > 0) await delay(trickleMs);
        if (!client.write(chunk.subarray(at, at + pieceBytes))) await once(client, "drain");
      }
    }
    if (!silent.has(client)) client.end();
  };
  const proxy = createServer({ allowHalfOpen: true }, (client) => {
    if (current?.kind === "cut") return void client.resetAndDestroy();
    const server = connect({ port: Number(target.port), host: "127.0.0.1", allowHalfOpen: true });
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        sockets.delete(one);
        other.destroy();
      });
    }
    clients.add(client);
    client.once("close", () => clients.delete(client));
    client.pipe(server);
    answer(server, client).catch(() => client.destroy());
  });
  proxy.listen(0, host);
  await once(proxy, "listening");
  const address = proxy.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  const reset = (): void => {
    for (const socket of sockets) socket.resetAndDestroy();
  };
  return {
    port: address.port,
    through(url) {
      const moved = new URL(url);
      moved.hostname = host;
      moved.port = String(address.port);
      return moved.href;
    },
    trouble(trouble) {
      current = trouble;
      if (trouble?.kind === "cut") reset();
      if (trouble?.kind !== "silent") return;
      for (const socket of sockets) silent.add(socket.unpipe().pause());
      for (const client of clients) {
        unclosed.add(client);
        for (const sign of ["end", "close"]) client.once(sign, () => unclosed.delete(client));
        // What it sends is thrown away; that it has closed is noticed.
        client.resume();
      }
    },
    silentConnections: () => unclosed.size,
    [Symbol.asyncDispose]: async () => {
      proxy.close();
      reset();
      await once(proxy, "close");
    },
  };
}
