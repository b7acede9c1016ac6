import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { provideGophercloud } from "../../scripts/gophercloud-packages.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type IdentityServer, startIdentity } from "../kit/keystone.ts";

/** Packages of gophercloud's acceptance tests for block storage, with tests of ours that need no compute service. */
const packages: readonly { path: string; added: Readonly<Record<string, string>> }[] = [
  { path: ".", added: {} },
  { path: "v1", added: {} },
  { path: "v2", added: {} },
  { path: "v3", added: { "attachments_test.go": "attachments_test.go" } },
  { path: "extensions", added: { "actions_test.go": "actions_test.go" } },
];

/** As many tests of its own as gophercloud has in these packages. */
const theirs = 34;

/** Those of them that cannot pass, with the reason. The five with `cinder` fail with a real Cinder beside the same Keystone, too. */
const failing: Readonly<Record<string, string>> = {
  "v1 TestSnapshotsCreateDelete": "cinder: a snapshot is answered 202 and not, as by v1, 200",
  "v1 TestVolumeTypesCreateDestroy": "there is one volume type (docs/cinder-differences.md)",
  "v3 TestVolumeTypes": "there is one volume type (docs/cinder-differences.md)",
  "v3 TestVolumesMultiAttach": "cinder: `multiattach` is no parameter any more",
  "v3 TestVolumeAttachments": "cinder: no compute service",
  "extensions TestVolumeActionsAttachCreateDestroy": "cinder: no compute service",
  "extensions TestVolumeActionsUploadImageDestroy": "cinder: no image service",
  "extensions TestVolumeActionsImageMetadata": "there are no images (docs/cinder-differences.md)",
};

let scratch: string;
let keystone: IdentityServer;
let instance: Instance;
const stack = new AsyncDisposableStack();

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "tephra-gophercloud-"));
  stack.defer(() => rmSync(scratch, { recursive: true, force: true }));
  keystone = stack.use(await startIdentity({ tokenLifeSeconds: 3600 }));
  const own = { name: "tephra", password: "pw tephra", project: "service", role: "service" };
  await keystone.addUser(own);
  const settings = { url: `${keystone.url}/v3`, username: own.name, password: own.password, timeout_ms: 20_000 };
  const quotas = { volumes: 40 };
  instance = stack.use(await startInstance({ config: { auth: { mode: "keystone", keystone: settings }, quotas } }));
  for (const type of ["volume", "volumev2", "volumev3"]) {
    await keystone.addService({ type, name: type, url: `${instance.url}/v3/%(project_id)s` });
  }
});
afterAll(() => stack.disposeAsync());

/** What a test that failed has left is in the way of the next ones, which look at all that there is. */
async function removeAll(): Promise<void> {
  const { user: name, password, project } = keystone;
  const headers = { "x-auth-token": await keystone.tokenOf({ name, password, project }) };
  const base = `/v3/${await keystone.projectId(project)}/volumes`;
  const left = async (): Promise<{ id: string }[]> =>
    (await instance.request("GET", base, undefined, headers)).body.volumes;
  for (const { id } of await left()) {
    const reply = await instance.request("DELETE", `${base}/${id}?cascade=true`, undefined, headers);
    expect([202, 404], reply.text).toContain(reply.status);
  }
  await instance.waitFor(async () => (await left()).length === 0, { what: "no volume is left", timeoutMs: 60_000 });
}

/** Runs a compiled package of tests; which passed, and what the others said. */
async function run(program: string): Promise<{ passed: string[]; failed: Map<string, string> }> {
  const env = {
    HOME: scratch,
    OS_AUTH_URL: `${keystone.url}/v3`,
    OS_REGION_NAME: keystone.region,
    OS_USERNAME: keystone.user,
    OS_PASSWORD: keystone.password,
    OS_PROJECT_NAME: keystone.project,
    OS_DOMAIN_ID: "default",
  };
  const output = await new Promise<string>((resolve) => {
    const options = { env, timeout: 900_000, maxBuffer: 2 ** 26 };
    execFile(program, ["-test.v", "-test.timeout", "15m"], options, (_error, stdout) => resolve(stdout));
  });
  const verdicts = [...output.matchAll(/^--- (PASS|FAIL|SKIP): (\w+)/gm)];
  const passed = verdicts.flatMap(([, verdict, name = ""]) => (verdict === "PASS" ? [name] : []));
  const told = (name: string): string =>
    output.split(`=== RUN   ${name}\n`)[1]?.split("=== RUN ")[0]?.slice(-1500) ?? "";
  const failed = verdicts.flatMap(([, verdict, name = ""]) =>
    verdict === "PASS" ? [] : [[name, told(name)] as const],
  );
  expect(verdicts.length, output.slice(-2000)).toBeGreaterThan(0);
  return { passed, failed: new Map(failed) };
}

it("passes gophercloud's own tests of block storage, apart from those that are named", {
  timeout: 3_000_000,
}, async () => {
  const gophercloud = await provideGophercloud((line) => process.stderr.write(`${line}\n`), writeFile);
  const unexpected: string[] = [];
  const passed: string[] = [];
  let count = 0;
  for (const { path, added } of packages) {
    const to = join(scratch, `${path === "." ? "versions" : path}.test`);
    const own = Object.entries(added).map(([file, ours]) => [file, join(import.meta.dirname, "gophercloud", ours)]);
    await gophercloud.compile(join("openstack/blockstorage", path), { to, added: Object.fromEntries(own), scratch });
    const result = await run(to);
    await removeAll();
    count += result.passed.length + result.failed.size - Object.keys(added).length;
    passed.push(...result.passed.map((name) => `${path} ${name}`));
    for (const [name, text] of result.failed) {
      if (!Object.hasOwn(failing, `${path} ${name}`)) unexpected.push(`${path} ${name}\n${text}`);
    }
  }
  const ours = passed.filter((name) => name.endsWith("WithoutCompute")).length;
  process.stdout.write(
    `gophercloud: ${passed.length - ours} of ${count} passed, and ${ours} of ours\n${passed.map((name) => `  ${name}\n`).join("")}`,
  );
  expect(unexpected).toEqual([]);
  expect(count).toBe(theirs);
  // What passes is no failing one any more: the list says so.
  expect(Object.keys(failing).filter((name) => passed.includes(name))).toEqual([]);
});
