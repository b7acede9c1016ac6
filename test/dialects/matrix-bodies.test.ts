import { createHash, randomUUID } from "node:crypto";
import { expect, it } from "vitest";
import type { Instance, Reply } from "../kit/instance.ts";
import { setStatus, startApiOnly } from "./api-only.ts";
import {
  alsoServers,
  type BodyField,
  bodyFields,
  idFields,
  lastOf,
  type Named,
  nameOf,
  plainKeys,
} from "./cinder/body-fields.ts";
import { fillPath, makeWorld, sampleBodies, type World } from "./matrix-world.ts";

interface Row {
  field: BodyField;
  names: Named;
}

function rowsOf(field: BodyField): Row[] {
  const entry = idFields[nameOf(field)];
  if (!entry) return [];
  const servers = alsoServers.includes(nameOf(field)) ? [{ field, names: "server" as const }] : [];
  return [{ field, names: entry.names }, ...servers];
}

const rows = bodyFields.flatMap(rowsOf);
const callers = ["reader", "member"] as const;

const b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const nobody = "dddddddddddddddddddddddddddddddd";
/** Each row has a project of its own, so that it reads nothing of what another row has written down. */
const projectOf = (row: number): string => `a${String(row).padStart(31, "0")}`;

/** Readers change nothing, and share one. */
const readersProject = projectOf(rows.length);

const tokens: Readonly<Record<string, { project_id: string; roles: readonly string[] }>> = {
  "member-of-b": { project_id: b, roles: ["member"] },
  ...Object.fromEntries(
    [...rows, null].flatMap((_row, at) =>
      callers.map((role) => [`${role}-of-${projectOf(at)}`, { project_id: projectOf(at), roles: [role] }]),
    ),
  ),
};

const config = {
  auth: {
    mode: "static",
    enforce_new_defaults: true,
    tokens: Object.entries(tokens).map(([token, of]) => ({
      sha256: createHash("sha256").update(token).digest("hex"),
      user_id: `user-of-${token}`,
      ...of,
    })),
  },
  quotas: { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1, groups: -1 },
  log_level: "warn",
};

/** What each kind of id is in one project. */
type Ids = Readonly<Record<Named, string>>;

const recordOf = (id: string): string =>
  Buffer.from(JSON.stringify({ id, size: 1, container: "c", display_name: "imported" })).toString("base64");

const unknownIds = (): Ids => ({
  volume: randomUUID(),
  snapshot: randomUUID(),
  backup: randomUUID(),
  group: randomUUID(),
  groupSnapshot: randomUUID(),
  instance: randomUUID(),
  server: randomUUID(),
  attachment: randomUUID(),
  container: `volume_${randomUUID()}`,
  project: nobody,
  record: recordOf(randomUUID()),
  image: randomUUID(),
  policy: randomUUID(),
});

interface Place {
  project: string;
  world: World;
  ids: Ids;
}

/** A world with what more an id can name: a volume that a server has, of which no instance is known. */
async function makePlace(instance: Instance, project: string, token: string): Promise<Place> {
  const world = await makeWorld(instance, project, token);
  const server = randomUUID();
  const headers = { "x-auth-token": token };
  const made = await instance.request(
    "POST",
    `/v3/${project}/volumes`,
    { volume: { size: 1, name: world.secret } },
    headers,
  );
  const { id } = made.body.volume;
  await setStatus(instance, "volumes", id, "available");
  const attach = { "os-attach": { instance_uuid: server, mountpoint: "/dev/vdc" } };
  const attached = await instance.request("POST", `/v3/${project}/volumes/${id}/action`, attach, headers);
  expect(attached.status, attached.text).toBe(202);
  const [attachment] = await instance.sql("SELECT id FROM attachments WHERE volume_id = $1", [id]);
  await instance.sql("UPDATE backups SET container = 'volume_' || volume_id WHERE id = $1", [world.backup]);
  const { volume, snapshot, backup, group, groupSnapshot, instance: machine, policy } = world;
  const named = { volume, snapshot, backup, group, groupSnapshot, instance: machine, policy };
  const container = `volume_${volume}`;
  const rest = { server, attachment: attachment.id, container, project, record: recordOf(backup), image: randomUUID() };
  return { project, world, ids: { ...named, ...rest } };
}

type Body = Record<string, unknown>;

/** The sample body of the route, with `value` where the field is. */
function bodyWith(field: BodyField, place: Place, value: string, dataDir: string): unknown {
  const sample = structuredClone(sampleBodies(place.world, dataDir)[field.route]);
  const body = (field.action === null ? sample : { [field.action]: sample }) as Body;
  const inner = field.keys.slice(0, -1).reduce<Body>((part, key) => {
    part[key] ??= {};
    return part[key] as Body;
  }, body);
  for (const key of idFields[nameOf(field)]?.without ?? []) delete inner[key];
  const last = field.keys.at(-1) as string;
  inner[last === "*" ? "same_host" : last] = value;
  return body;
}

async function ask(instance: Instance, field: BodyField, token: string, place: Place, value: string): Promise<Reply> {
  const path =
    (field.dialect === "ops" ? "" : `/v3/${place.project}`) + fillPath(field.path, place.world, place.project);
  const headers = { "x-auth-token": token, "openstack-api-version": "volume 3.71" };
  return instance.request(field.method, path, bodyWith(field, place, value, instance.dataDir), headers);
}

/** All that the project can read of itself. */
async function seenBy(instance: Instance, { project, world }: Place, token: string): Promise<string> {
  const lists = ["volumes", "snapshots", "backups", "groups", "group_snapshots"].map(
    (name) => `/v3/${project}/${name}/detail`,
  );
  const others = [
    `/v3/${project}/instance-groups/${world.instanceGroup}`,
    "/ops/instances",
    "/ops/operations",
    `/v3/${project}/limits`,
  ];
  const texts: string[] = [];
  for (const path of [...lists, ...others]) {
    const headers = { "x-auth-token": token, "openstack-api-version": "volume 3.71" };
    const reply = await instance.request("GET", path, undefined, headers);
    expect(reply.status, `${path}: ${reply.text}`).toBe(200);
    texts.push(reply.text);
  }
  return texts.join("\n");
}

/** An answer without what differs from one id, or one world, to the next. */
function unnamed(reply: Reply, value: string, { project }: Place): string {
  const known = [value, project, b, nobody].reduce((left, word) => left.replaceAll(word, "<word>"), reply.text);
  const text = known
    .replace(/[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}/g, "<id>")
    .replace(/secret-[0-9a-f]{8}/g, "<word>")
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z?/g, "<time>");
  return `${reply.status} ${text}`;
}

it("knows of every field of every body whether it bears an id", () => {
  const names = bodyFields.map(nameOf);
  const unclassified = bodyFields.filter((f) => !idFields[nameOf(f)] && !plainKeys.has(lastOf(f))).map(nameOf);
  expect(unclassified, "say in body-fields.ts what these fields name").toEqual([]);
  expect(Object.keys(idFields).filter((name) => !names.includes(name))).toEqual([]);
});

interface Asker {
  project: string;
  caller: (typeof callers)[number];
  theirs: Place;
  /** What B saw of itself at first. */
  before: string;
  /** A world that all questions may share; null: each has a new one. */
  readable: Place | null;
}

/** What is wrong with the answers that a caller gets in one row; empty when nothing is. Asks three times. */
async function leaksOf(
  instance: Instance,
  { field, names }: Row,
  { project, caller, theirs, before, readable }: Asker,
): Promise<string[]> {
  const leaks: string[] = [];
  const answers: Record<string, string> = {};
  const member = `member-of-${project}`;
  let untouched = readable;
  for (const whose of ["unknown", "foreign", "own"] as const) {
    const mine = untouched ?? (await makePlace(instance, project, member));
    const value = { unknown: unknownIds(), foreign: theirs.ids, own: mine.ids }[whose][names];
    const reply = await ask(instance, field, `${caller}-of-${project}`, mine, value);
    answers[whose] = unnamed(reply, value, mine);
    // What is refused changes nothing, and a reader is always refused: the next question may be asked in the same world.
    untouched = readable ?? (reply.status >= 400 ? mine : null);
    if (reply.status >= 500) leaks.push(`${whose} is answered ${reply.status}`);
    if (whose !== "foreign") continue;
    const read = `${reply.text}\n${await seenBy(instance, mine, member)}`.replaceAll(value, "");
    const shown = Object.values({ ...theirs.world, ...theirs.ids }).filter(
      (word) => word !== value && read.includes(word),
    );
    if (shown.length > 0) leaks.push(`shows ${shown.join(", ")}`);
    if ((await seenBy(instance, theirs, "member-of-b")) !== before) leaks.push("changes what B sees");
  }
  const { own = "", foreign, unknown } = answers;
  if (foreign !== unknown) leaks.push(`foreign ${foreign}, but unknown ${unknown}`);
  const followed = own !== unknown || /^(2|403)/.test(own) || idFields[nameOf(field)]?.ownRefused;
  if (!followed && names !== "image") leaks.push(`own is answered as unknown: ${own}`);
  return leaks.map((leak) => `${nameOf(field)} (${names}), ${caller}: ${leak}`);
}

it("answers another project's id in a body as one that nobody has, and follows it nowhere", {
  timeout: 600_000,
}, async () => {
  await using instance = await startApiOnly({ config });
  const theirs = await makePlace(instance, b, "member-of-b");
  const before = await seenBy(instance, theirs, "member-of-b");
  const readable = await makePlace(instance, readersProject, `member-of-${readersProject}`);
  const leaks: string[] = [];
  for (const [at, row] of rows.entries()) {
    const asker = { theirs, before };
    leaks.push(
      ...(await leaksOf(instance, row, { ...asker, project: projectOf(at), caller: "member", readable: null })),
    );
    leaks.push(...(await leaksOf(instance, row, { ...asker, project: readersProject, caller: "reader", readable })));
  }
  const cells = rows.length * 3 * callers.length;
  process.stdout.write(
    `tenant matrix of bodies: ${rows.length} fields × 3 ids × ${callers.length} callers = ${cells} cells, ${leaks.length} leaks\n`,
  );
  expect(leaks).toEqual([]);
});
