import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ask, declaration, type EngineReply } from "../../dialects/ovirt/engine.ts";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";

/** One request as a client of oVirt writes it, and what an engine answered. Names in capitals stand for ids. */
interface Exchange {
  title: string;
  method: string;
  path: string;
  headers?: Record<string, string>;
  body?: string;
  status: number;
  /** Of what was made. */
  location?: string;
  answer?: string;
}

const exchanges = JSON.parse(
  readFileSync(new URL("../../dialects/golden/ovirt-exchanges.json", import.meta.url), "utf8"),
) as Exchange[];

const MiB = 1024 * 1024;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
/** Name of the recording → id here. */
const ids = new Map<string, string>();
/** What the first snapshot has kept of the machine. */
let ovf = "";

beforeAll(async () => {
  world = await openBackupWorld(stack);
  const machine = async (name: string, sizes: readonly number[]): Promise<[string, string[]]> => {
    const disks: string[] = [];
    for (const [at, size] of sizes.entries()) disks.push(await world.addDisk(`${name}_Disk${at + 1}`, size));
    const id = await world.addMachine(name, disks);
    await world.answered(200, "PUT", `/vms/${id}`, { json: { os: { type: "other_linux" } } });
    await world.answered(200, "PUT", `/vms/${id}/diskattachments/${disks[0]}`, { json: { bootable: true } });
    stack.use(await world.run(id, disks));
    return [id, disks];
  };
  const [vm, [disk = "", disk2 = ""]] = await machine("vm1", [16 * MiB, 16 * MiB]);
  const [app, [own = ""]] = await machine("virtapp", [MiB]);
  const nic = { name: "nic1", mac: { address: "56:6f:00:00:00:67" } };
  const { id } = (await world.answered(201, "POST", `/vms/${vm}/nics`, { json: nic })).json;
  for (const [name, value] of Object.entries({ VM: vm, DISK: disk, DISK2: disk2, APP: app, OWN: own, NIC: id })) {
    ids.set(name, value);
  }
}, 600_000);
afterAll(() => stack.disposeAsync());

const uuid = /[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g;
const filled = (text: string): string =>
  text
    .replace(/\b[A-Z]{2,}\d?\b/g, (name) => ids.get(name) ?? name)
    .replaceAll("data1", "images")
    .replace("…the OVF…", ovf);

/** Without what differs from one engine to the next: ids, times, sizes of files and storage, names of hosts, and how far a snapshot is. */
const plain = (text: string): string =>
  text
    .replace(/<data>[\s\S]*?<\/data>/, "<data>OVF</data>")
    .replace(uuid, (id) => [...ids].find(([, value]) => value === id)?.[0] ?? "UUID")
    .replace(/\b(?:HOST|CLUSTER|SD|DC|JOB|CP\d|R?IMG\d?b?|NEWIMG|ACTIVE|OWN|JDISK)\b/g, "UUID")
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+\+00:00/g, "TIME")
    .replace(/((?:date|time)" *: *)\d+/g, "$1TIME")
    .replace(/((?:actual_size|initial_size|total_size|available|used|committed|master)(?:>|" *: *"))\w+/g, "$1N")
    .replace(/events\/\d+" id="\d+"/, 'events/N" id="N"')
    .replace(/virtio-[0-9a-f-]{20}/g, "virtio-ID")
    .replace(/https?:\/\/[^/<"]+/g, "SERVER")
    .replace(/images\/(?!")[\w-]+/g, "images/TICKET")
    .replaceAll("data1", "images")
    .replace("image_locked", "up")
    .replace(/<(name|address)>(?:host1|127\.0\.0\.1)</g, "<$1>HOST<")
    .replaceAll(`>${hostname()}<`, ">HOST<");

/** What is told here besides. */
const elementsBesides = /\n *<(boot|boot_menu|io|sso|usb)>[\s\S]*?<\/\1>/g;
const besides = [
  /^\.(?:.*\.)?(bios\.boot_menu|os\.boot|io|sso|usb)\./,
  /creation_status/,
  /<correlation_id>|<user |<name>admin@internal|<\/user>/,
  /<(description|comment)><\/\1>/,
  /<link .*\/search"/,
];
/** What is not there: docs/ovirt.md, section 6. */
const absent = [/rel="(copy|reduce|sparsify)"|disks\/NEWDISK\/(export|move)"/];

/** One line for each thing that is told. JSON has no order. */
function linesOf(text: string, json: boolean, hasLinks: boolean): string[] {
  if (text === "") return [];
  if (json)
    return flat(JSON.parse(text)).filter((line) => hasLinks || !/^\.?(link|actions)\b|\.(link|actions)\b/.test(line));
  const body = text.startsWith(declaration) ? text.slice(declaration.length) : text;
  const bare = (hasLinks ? body : body.replace(/\n *<link [^>]*\/>/g, "")).replace(elementsBesides, "");
  return plain(bare.trimEnd().replace(/\n *<actions>\s*<\/actions>/g, "")).split("\n");
}

const flat = (value: unknown, path = ""): string[] =>
  typeof value !== "object" || value === null || Object.keys(value).length === 0
    ? [plain(`${path}": ${JSON.stringify(value)}`)]
    : Object.entries(value)
        .flatMap(([key, inner]) => flat(inner, `${path}.${key}`))
        .sort();

const isJson = ({ headers }: Exchange): boolean => headers?.["Accept"] === "application/json";

async function replay(exchange: Exchange): Promise<EngineReply> {
  const { method, path, headers = {}, body } = exchange;
  const sent = body === undefined ? {} : { xml: filled(body) };
  return ask(world.instance, method, filled(path), { headers, ...sent });
}

/** Names that the recording uses later. */
function remember({ path, location }: Exchange, reply: EngineReply): void {
  const name = location?.split("/").at(-1) ?? "";
  if (/^[A-Z0-9]+$/.test(name)) ids.set(name, String(reply.headers["location"]).split("/").at(-1) ?? "");
  const found = (pattern: RegExp): string | undefined => pattern.exec(reply.text)?.[1];
  for (const [known, id] of [
    ["HOST", found(/\/hosts\/([\w-]+)/)],
    ["SD", found(/\/storagedomains\/([\w-]+)/)],
    [path.includes("BACKUP2") ? "CP2" : "CP1", found(/"?to_checkpoint_id(?:>|":")([\w-]+)/)],
  ] as const) {
    if (id !== undefined && !ids.has(known)) ids.set(known, id);
  }
}

const recorded = exchanges.map((exchange, at) => [at, exchange.title, exchange] as const);

test.each(recorded)("%i %s", async (_at, _title, exchange) => {
  const reply = await replay(exchange);
  remember(exchange, reply);
  await settle(exchange, reply);
  const { status, answer = "" } = exchange;
  const hasLinks = /<link /.test(answer);
  const want = linesOf(answer, isJson(exchange), hasLinks).filter((line) => !absent.some((each) => each.test(line)));
  const told = linesOf(reply.text, isJson(exchange), hasLinks);
  const got = told.filter((line) => want.includes(line) || ![...besides, ...absent].some((each) => each.test(line)));
  expect({ status: reply.status, lines: got.filter(Boolean) }).toEqual({ status, lines: withoutEmpty(want) });
});

/** Of actions that are all absent. */
const withoutEmpty = (lines: string[]): string[] =>
  lines
    .join("\n")
    .replace(/\n *<actions>\n *<\/actions>/g, "")
    .split("\n")
    .filter(Boolean);

/** Waits until what was begun is there, as a client does. */
async function settle({ path, location, method }: Exchange, reply: EngineReply): Promise<void> {
  if (reply.status >= 400) return;
  const below = (url: string): string => url.replace(/^.*?\/api\//, "/");
  const until = (of: string, seen: (json: EngineReply["json"]) => boolean) =>
    world.until(of, seen, `${method} ${path}`);
  if (location !== undefined) {
    const made = below(String(reply.headers["location"]));
    if (/\/snapshots\/\w+$/.test(location)) {
      await until(made, ({ snapshot_status: status }) => status === "ok");
      const json = (await world.answered(200, "GET", `${made}?all_content=true`)).json;
      ovf ||= json.initialization.configuration.data;
    }
    if (/\/backups\/\w+$/.test(location)) await until(made, ({ phase }) => phase === "ready");
    if (/\/imagetransfers\/\w+$/.test(location)) await until(made, ({ phase }) => phase === "transferring");
    if (/api\/disks\/\w+$/.test(location)) await until(made, ({ status }) => status === "ok");
  }
  const of = below(filled(path).replace(/\/(?:finalize|resume)$/, ""));
  if (path.endsWith("/finalize")) await until(of, ({ phase }) => ["succeeded", "finished_success"].includes(phase));
  if (path.endsWith("/resume")) await until(of, ({ phase }) => phase === "transferring");
  if (method !== "DELETE" || !path.includes("/snapshots/")) return;
  const isGone = async () => (await ask(world.instance, "GET", `/ovirt-engine/api${of}`)).status === 404;
  await world.instance.waitFor(isGone, { what: "the snapshot is gone" });
}
