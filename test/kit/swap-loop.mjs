// swap-loop.mjs A B: endlessly and atomically exchanges the names A and B, like an attacker exploiting the time between a check and its
// use. Prints the number of exchanges when it is told to stop.
import { createRequire } from "node:module";

const koffi = createRequire(new URL("../../packages/engine/package.json", import.meta.url))("koffi");
const renameat2 = koffi.load("libc.so.6").func("int renameat2(int from, str a, int to, str b, unsigned int flags)");
const [a, b] = process.argv.slice(2);
const here = -100;
const exchange = 2;

let swaps = 0;
const loop = () => {
  for (let i = 0; i < 50; i++) if (renameat2(here, a, here, b, exchange) === 0) swaps++;
  setImmediate(loop);
};
process.on("SIGTERM", () => {
  if (swaps % 2 === 1) renameat2(here, a, here, b, exchange);
  process.stdout.write(`${swaps}\n`, () => process.exit());
});
process.stdout.write("ready\n");
loop();
