import { type Command, InvalidArgumentError, Option } from "commander";
import { type Client, openClient, projectDefault, urlDefault } from "./client.ts";
import type { OperationQuery, WaitOptions } from "./wait.ts";
import { waitForOperation } from "./wait.ts";

/** What every command uses: the service client, and where its output goes. */
export interface Session {
  readonly client: Client;
  /** Null without `--wait`. */
  readonly waiting: WaitOptions | null;
  /** With `--json` prints only the document, otherwise the text. To be called once. */
  print(document: unknown, text: string): void;
  /** Waits if `--wait` was given. @throws like waitForOperation */
  settle(query: OperationQuery): Promise<void>;
}

interface Options {
  url: string;
  token?: string;
  project?: string;
  json?: boolean;
  wait?: boolean;
  timeout?: number;
}

/** The options of every command; each but `--json` can also be set in the environment. */
export function addGlobalOptions(program: Command): void {
  program
    .addOption(new Option("--url <url>", "the service").env("TEPHRA_URL").default(urlDefault))
    .addOption(new Option("--token <token>", "sent as X-Auth-Token").env("TEPHRA_TOKEN"))
    .addOption(new Option("--project <id>", `without a token: ${projectDefault}`).env("TEPHRA_PROJECT"))
    .option("--json", "print one JSON document");
}

/** For commands that start an operation. */
export function addWaitOptions(command: Command): Command {
  return command
    .option("--wait", "Wait for the operation to finish.")
    .option(
      "--timeout <seconds>",
      "With --wait: stop waiting after this long; the operation continues.",
      positiveNumber,
    );
}

export function openSession(command: Command): Session {
  const options = command.optsWithGlobals<Options>();
  const client = openClient({ url: options.url, token: options.token, project: options.project });
  const terminal = process.stderr.isTTY ? process.stderr : null;
  const waiting = options.wait === true ? { timeoutSeconds: options.timeout, terminal } : null;
  return {
    client,
    waiting,
    print: (document, text) => {
      process.stdout.write(options.json === true ? `${JSON.stringify(document)}\n` : text);
    },
    settle: async (query) => {
      if (waiting !== null) await waitForOperation(client, query, waiting);
    },
  };
}

export function positiveNumber(text: string): number {
  const value = Number(text);
  if (!(value > 0) || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number above 0.");
  return value;
}

export function positiveInteger(text: string): number {
  const value = positiveNumber(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("It must be a whole number.");
  return value;
}
