import { connect, createServer } from "node:net";

/** `relay.ts ADDRESS PORT`: passes what is sent to that address on to the same port of the loopback interface. */
const [address, port] = process.argv.slice(2);
const server = createServer({ allowHalfOpen: true }, (client) => {
  const inner = connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true });
  client.on("error", () => inner.destroy()).pipe(inner);
  inner.on("error", () => client.destroy()).pipe(client);
});
server.listen(Number(port), address, () => process.stdout.write("listening\n"));
