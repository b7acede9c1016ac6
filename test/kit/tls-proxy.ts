import { readFileSync } from "node:fs";
import { type AddressInfo, connect } from "node:net";
import { createServer } from "node:tls";

/** Takes TLS off in front of a server of 127.0.0.1, as a balancer does. `await using` stops it. */
export async function startTlsProxy(
  files: { cert: string; key: string },
  port: number,
): Promise<{ readonly port: number } & AsyncDisposable> {
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer({ cert: readFileSync(files.cert), key: readFileSync(files.key) }, (outer) => {
    const inner = connect(port, "127.0.0.1");
    for (const socket of [outer, inner]) sockets.add(socket.on("error", () => {}));
    outer.pipe(inner).pipe(outer);
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((done) => server.close(done));
    },
  };
}
