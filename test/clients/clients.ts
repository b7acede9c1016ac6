import { execFile } from "node:child_process";
import { join } from "node:path";
import { expect } from "vitest";
import { unpackClients } from "../../scripts/client-packages.ts";
import { systemPython } from "../../scripts/debian-packages.ts";

/** How one user reaches one Tephra with each client. */
export interface Access {
  /** The environment of `openstack` and openstacksdk. */
  openstack: Readonly<Record<string, string>>;
  /** The environment of `cinder`, and its options before those of a test. */
  cinder: { environment: Readonly<Record<string, string>>; options: readonly string[] };
}

/** A user of mode `static`: the clients' plugins that need no Keystone. The token is made of both ids because `cinder` makes it so. */
export function tokenAccess(url: string, user: { userId: string; projectId: string }): Access {
  const { userId, projectId } = user;
  return {
    openstack: {
      OS_AUTH_TYPE: "admin_token",
      OS_TOKEN: `${userId}:${projectId}`,
      OS_ENDPOINT: `${url}/v3/${projectId}`,
    },
    cinder: {
      environment: {},
      options: [
        ...["--os-auth-type", "noauth", "--os-endpoint", `${url}/v3`],
        ...["--os-user-id", userId, "--os-project-id", projectId],
      ],
    },
  };
}

/** A user of a Keystone: everything else is in its catalog. */
export function passwordAccess(
  keystone: { url: string; region: string },
  user: { name: string; password: string; project: string },
): Access {
  const environment = {
    OS_AUTH_TYPE: "password",
    OS_AUTH_URL: `${keystone.url}/v3`,
    OS_REGION_NAME: keystone.region,
    OS_USERNAME: user.name,
    OS_PASSWORD: user.password,
    OS_PROJECT_NAME: user.project,
    OS_USER_DOMAIN_ID: "default",
    OS_PROJECT_DOMAIN_ID: "default",
    OS_IDENTITY_API_VERSION: "3",
  };
  return { openstack: environment, cinder: { environment, options: [] } };
}

/** What a command left behind. */
export interface Ended {
  status: number;
  stdout: string;
  stderr: string;
}

/** What runs the clients for a user, each call a process of its own. `home` is where they keep their caches. */
export function clientsOf(access: Access, home: string) {
  const run = async (args: readonly string[], own: Access["openstack"]): Promise<Ended> => {
    const installed = await provided();
    return execute(args, { PATH: process.env["PATH"], HOME: home, no_proxy: "*", ...installed, ...own });
  };
  const runOpenstack = (args: readonly string[]) => run(["-m", "openstackclient.shell", ...args], access.openstack);
  const { environment, options } = access.cinder;
  const runCinder = (args: readonly string[]) => run(["-m", "cinderclient.shell", ...options, ...args], environment);
  const openstack = async (...args: string[]) => judge(await runOpenstack(args), args);
  const cinder = async (...args: string[]) => judge(await runCinder(args), args);
  return {
    /** `openstack ARGS`, which must succeed; its output. */
    openstack,
    /** `openstack ARGS`, however it ends. */
    openstackEnds: (...args: string[]) => runOpenstack(args),
    /** `openstack ARGS -f json`, which must succeed and print JSON. */
    // biome-ignore lint/suspicious/noExplicitAny: tests reach into output whose shape is what they check
    openstackJson: async (...args: string[]): Promise<any> => JSON.parse(await openstack(...args, "-f", "json")),
    /** `cinder ARGS`, which must succeed; its output. */
    cinder,
    /** `cinder ARGS`, however it ends. */
    cinderEnds: (...args: string[]) => runCinder(args),
    /** `cinder ARGS`, which must succeed and print properties and their values. */
    cinderProperties: async (...args: string[]) => propertiesOf(await cinder(...args)),
    /** `cinder ARGS`, which must succeed and print a list. */
    cinderRows: async (...args: string[]) => rowsOf(await cinder(...args)),
    /** A program for openstacksdk beside this file, which must succeed and print JSON. */
    // biome-ignore lint/suspicious/noExplicitAny: tests reach into output whose shape is what they check
    sdk: async (program: string, ...args: string[]): Promise<any> =>
      JSON.parse(judge(await run([join(import.meta.dirname, program), ...args], access.openstack), args)),
  };
}

export type Clients = ReturnType<typeof clientsOf>;

/** @returns what it printed */
function judge({ status, stdout, stderr }: Ended, args: readonly string[]): string {
  expect(status, `${args.join(" ")}\n${stdout}${stderr}`).toBe(0);
  return stdout;
}

let packages: Promise<Record<string, string>> | null = null;

/** What `systemPython` needs to find the clients, which are fetched when they are not there. Once per process. */
function provided(): Promise<Record<string, string>> {
  packages ??= unpackClients((line) => process.stderr.write(`${line}\n`));
  return packages;
}

const commandTimeoutMs = 120_000;

function execute(args: readonly string[], env: NodeJS.ProcessEnv): Promise<Ended> {
  return new Promise((resolve) => {
    const options = { env, timeout: commandTimeoutMs, maxBuffer: 2 ** 24 };
    execFile(systemPython, ["-W", "ignore", ...args], options, (error, stdout, stderr) => {
      // No number when it was ended from outside or could not be started: no success in any case.
      const status = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ status, stdout, stderr });
    });
  });
}

/** The cells of a table that is drawn with `|`, without its lines. */
function cellsOf(output: string): string[][] {
  const lines = output.split("\n").filter((line) => line.startsWith("|"));
  return lines.map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

/** A table of two columns. */
function propertiesOf(output: string): Record<string, string> {
  const [, ...rows] = cellsOf(output);
  return Object.fromEntries(rows.map(([name = "", value = ""]) => [name, value]));
}

/** A table with a heading. */
function rowsOf(output: string): Record<string, string>[] {
  const [heading = [], ...rows] = cellsOf(output);
  return rows.map((row) => Object.fromEntries(heading.map((name, column) => [name, row[column] ?? ""])));
}
