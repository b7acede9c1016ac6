import { Argument, Command, type Option } from "commander";
import type { Client } from "./client.ts";
import { listInstances } from "./instances.ts";
import { cellText } from "./output.ts";
import { listPolicies } from "./policies.ts";
import { openSession } from "./session.ts";

const shells = ["bash", "zsh", "fish", "powershell"];
/** A word that means nothing but itself to any shell (bash expands what it is offered): other names are completed to their ids. */
const plainWord = /^\w[\w.+:@-]*$/;
/** A shell that waits for longer than this looks dead: it completes commands and options then. */
const namesTimeoutMs = 2000;
const namesMax = 200;
/** Arguments and values of options that are files of the caller's machine. */
const files = /^(?:path|file|record|folder)$/;

interface Named {
  id: string;
  name: string | null;
}

const newestOf =
  (kind: "volumes" | "backups" | "snapshots") =>
  async (client: Client, signal: AbortSignal): Promise<Named[]> => {
    const path = client.block(`/${kind}?limit=${namesMax}&sort=created_at:desc`);
    return (await client.get<Record<string, Named[]>>(path, signal))[kind] ?? [];
  };

/** What lists the names that an argument takes, by the first word of the command and the argument's name; by `*` for every command. */
const namesOf: Record<string, (client: Client, signal: AbortSignal) => Promise<Named[]>> = {
  "* volume": newestOf("volumes"),
  "* volumes": newestOf("volumes"),
  "* backup": newestOf("backups"),
  "snapshot snapshot": newestOf("snapshots"),
  "instance instance": listInstances,
  "policy policy": listPolicies,
};

/**
 * `completion` prints the script that a shell loads once; the script asks the hidden `complete` for every press of the tab key.
 *
 * @param addCommands adds all commands of the program, as they are completed, to another
 */
export function addCompletionCommands(program: Command, addCommands: (program: Command) => void): void {
  program
    .command("completion")
    .description("Print a script that completes commands, options and names: source <(tephra completion bash)")
    .addArgument(new Argument("<shell>").choices(shells))
    .action(async (shell: string) => {
      const { script } = await import("@bomb.sh/tab");
      script(shell as Parameters<typeof script>[0], program.name(), program.name());
    });
  program
    .command("complete", { hidden: true })
    .argument("[words...]")
    .action(async (words: string[]) => {
      const described = new Command(program.name()).exitOverride().configureOutput({ writeErr: () => {} });
      addCommands(described);
      for (const [name, value] of Object.entries(program.opts())) described.setOptionValue(name, value); // Of the environment.
      const { default: tab } = await import("@bomb.sh/tab/commander");
      const tree = tab(described, { completionCommandName: "completion" });
      const typing = typedPart(described, words);
      if (typing !== undefined && files.test(typing.placeholder)) {
        // Nothing, and the directive that lets the shell complete files.
        process.stdout.write(":0\n");
        return;
      }
      const list = typing && (namesOf[`${typing.path[0]} ${typing.placeholder}`] ?? namesOf[`* ${typing.placeholder}`]);
      if (typing !== undefined && list !== undefined) {
        const names = await namesWithin(typing.command, list);
        const asked = tree.commands.get(typing.path.join(" "));
        const part =
          typing.option === null ? asked?.arguments.get(typing.placeholder) : asked?.options.get(typing.option);
        if (part !== undefined)
          part.handler = (complete: (value: string, description: string) => void) => {
            for (const { value, description } of names) complete(value, description);
          };
      }
      tree.parse(words);
    });
}

interface TypedPart {
  command: Command;
  /** The command's words, the program's own name left out. */
  path: string[];
  /** What stands for the value in the help: `backup` of `<backup>` or `--backup <backup>`. */
  placeholder: string;
  /** The option whose value is typed; null: an argument. */
  option: string | null;
}

/** What the last of these words is; undefined: the name of a command or option, or nothing that is known. */
function typedPart(program: Command, words: readonly string[]): TypedPart | undefined {
  const [previous, typed] = [words.at(-2), words.at(-1)];
  if (typed === undefined || typed.startsWith("-")) return undefined;
  try {
    const ofOption = previous?.startsWith("-") ?? false;
    const found = locate(program, words.slice(0, ofOption ? -2 : -1));
    const option =
      ofOption && previous
        ? optionsAbove(found.command).find((each) => [each.short, each.long].includes(previous))
        : undefined;
    const value = option && /[<[]([\w-]+)/.exec(option.flags)?.[1];
    if (option && value) return { ...found, placeholder: value, option: option.name() };
    const { registeredArguments: all } = found.command;
    const argument = all[found.given] ?? all.findLast(({ variadic }) => variadic);
    return argument && { ...found, placeholder: argument.name(), option: null };
  } catch {
    return undefined; // What was typed before is not complete either.
  }
}

/** The command that these words name, and how many arguments they give it. @throws CommanderError */
function locate(
  command: Command,
  words: string[],
  path: string[] = [],
): Omit<TypedPart, "placeholder" | "option"> & { given: number } {
  const { operands, unknown } = command.parseOptions(words);
  const [first, ...rest] = operands;
  const named = command.commands.find((each) => each.name() === first);
  if (named === undefined || first === undefined) return { command, path, given: operands.length };
  return locate(named, [...rest, ...unknown], [...path, first]);
}

function optionsAbove(command: Command): readonly Option[] {
  return command.parent === null ? command.options : [...command.options, ...optionsAbove(command.parent)];
}

/** Nothing where the service is away, slow, or refuses: a shell has no place for a reason. */
async function namesWithin(
  command: Command,
  list: (client: Client, signal: AbortSignal) => Promise<Named[]>,
): Promise<{ value: string; description: string }[]> {
  try {
    const { client } = openSession(command);
    const rows = await list(client, AbortSignal.timeout(namesTimeoutMs));
    const counts = new Map<string | null, number>();
    for (const { name } of rows) counts.set(name, (counts.get(name) ?? 0) + 1);
    return rows.map(({ id, name }) =>
      name !== null && plainWord.test(name) && counts.get(name) === 1
        ? { value: name, description: id }
        : { value: id, description: cellText(name) },
    );
  } catch {
    return [];
  }
}
