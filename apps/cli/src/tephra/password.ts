import { randomBytes, scrypt } from "node:crypto";
import { createInterface } from "node:readline/promises";
import { promisify } from "node:util";
import type { Command } from "commander";

/** scrypt's costs: 2^15 rounds of 8 blocks, some 32 MiB and a tenth of a second each time. */
const cost = { log2: 15, r: 8, p: 1 } as const;
const memoryMax = 64 * 1024 * 1024;

const derive = promisify<string, Buffer, number, { N: number; r: number; p: number; maxmem: number }, Buffer>(scrypt);

const plain = (bytes: Buffer): string => bytes.toString("base64").replace(/=+$/, "");

/** `$scrypt$ln=15,r=8,p=1$SALT$HASH`, as `ovirt.users` of the configuration has it. */
async function hashPassword(password: string): Promise<string> {
  const salt = randomBytes(16);
  const { log2, r, p } = cost;
  const key = await derive(password, salt, 32, { N: 2 ** log2, r, p, maxmem: memoryMax });
  return `$scrypt$ln=${log2},r=${r},p=${p}$${plain(salt)}$${plain(key)}`;
}

/** The first line of the standard input: arguments are seen by every user of the machine. */
async function readPassword(): Promise<string> {
  const lines = createInterface({ input: process.stdin });
  if (process.stdin.isTTY) process.stderr.write("Password: ");
  for await (const line of lines) {
    lines.close();
    if (line !== "") return line;
  }
  throw new Error("the standard input has no password");
}

export function addPasswordCommand(program: Command): void {
  program
    .command("hash-password")
    .description("Reads a password from the standard input and writes its hash, for a user of the oVirt API")
    .action(async () => {
      process.stdout.write(`${await hashPassword(await readPassword())}\n`);
    });
}
