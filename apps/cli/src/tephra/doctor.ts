import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";

/** The program with access to the servers; this command line itself uses only the API. */
const doctor = fileURLToPath(new URL("../../../worker/dist/doctor.js", import.meta.url));

interface DoctorOptions {
  quick?: true;
  problems?: true;
}

export function addDoctorCommand(program: Command): void {
  program
    .command("doctor")
    .description("Check this machine's configuration (TEPHRA_CONFIG, the environment) against the real servers.")
    .option("--quick", "Do not write anything.")
    .option("--problems", "Show only problems.")
    .action(runDoctor);
}

async function runDoctor(options: DoctorOptions, command: Command): Promise<void> {
  const args = Object.keys({ ...options, ...(command.optsWithGlobals()["json"] && { json: true }) });
  const child = spawn(process.execPath, [doctor, ...args.map((name) => `--${name}`)], { stdio: "inherit" });
  const ended = Promise.withResolvers<number>();
  child.on("error", ended.reject);
  child.on("exit", (code) => ended.resolve(code ?? 1));
  process.exitCode = await ended.promise;
}
