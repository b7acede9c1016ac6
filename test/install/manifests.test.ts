import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { backendFolder, loadConfig } from "@tephra/control/process";
import { Deployment } from "kubernetes-models/apps/v1";
import { HorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2";
import { Job } from "kubernetes-models/batch/v1";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import { PodDisruptionBudget } from "kubernetes-models/policy/v1";
import { ConfigMap, Namespace, PersistentVolumeClaim, Service } from "kubernetes-models/v1";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { root } from "../../scripts/bootstrap.mjs";
import { unpackSystemd } from "../../scripts/systemd-package.ts";
import { layOut } from "../kit/programs.ts";

// biome-ignore lint/suspicious/noExplicitAny: the schemas of Kubernetes say what is in it
type Resource = any;

const folder = join(root, "deploy/kubernetes");
const kustomization = parse(readFileSync(join(folder, "kustomization.yaml"), "utf8"));
const resources: Resource[] = kustomization.resources.flatMap((name: string) =>
  parseAllDocuments(readFileSync(join(folder, name), "utf8")).map((document) => document.toJS()),
);
/** Each validates against the schema that Kubernetes publishes for its kind. */
const models = [
  ConfigMap,
  Deployment,
  HorizontalPodAutoscaler,
  Job,
  Namespace,
  NetworkPolicy,
  PersistentVolumeClaim,
  PodDisruptionBudget,
  Service,
];
const named = (kind: string, name: string): Resource => {
  const found = resources.find((one) => one.kind === kind && one.metadata.name === name);
  if (found === undefined) throw new Error(`there is no ${kind} ${name}`);
  return found;
};
const withPods = resources.filter(({ kind }) => kind === "Deployment" || kind === "Job");
const podOf = (resource: Resource): Resource => resource.spec.template.spec;
const containers = withPods.flatMap((owner) => podOf(owner).containers.map((one: Resource) => ({ owner, ...one })));

let dir = "";
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "tephra-manifests-"));
  await layOut(dir, {});
});
afterAll(() => rmSync(dir, { recursive: true }));

/** Whether the schema of the resource's kind has nothing against it. @throws with what it has */
function validate(resource: Resource): void {
  const model = models.find(({ apiVersion, kind }) => apiVersion === resource.apiVersion && kind === resource.kind);
  if (model === undefined) throw new Error(`${resource.apiVersion} ${resource.kind} has no schema here`);
  new model(resource).validate();
}

describe("deploy/kubernetes", () => {
  test("every file belongs to it, and each resource is as Kubernetes's own schema says", () => {
    const files = readdirSync(folder).filter((name) => name !== "kustomization.yaml");
    expect([...kustomization.resources].sort()).toEqual(files.sort());
    for (const resource of resources) validate(resource);
    const broken = structuredClone(named("Deployment", "tephra-api"));
    broken.spec.template.spec.containers[0].ports[0].containerPort = "http";
    expect(() => validate(broken)).toThrow(/containerPort/);
  });

  test("no pod runs as root, may become root, writes to its image, or has a token of the cluster", () => {
    expect(named("Namespace", "tephra").metadata.labels["pod-security.kubernetes.io/enforce"]).toBe("restricted");
    for (const owner of withPods) {
      const pod = podOf(owner);
      expect(pod.automountServiceAccountToken, owner.metadata.name).toBe(false);
      expect(pod.securityContext).toMatchObject({
        runAsNonRoot: true,
        runAsUser: 1000,
        seccompProfile: { type: "RuntimeDefault" },
      });
      expect(pod.containers.length).toBeGreaterThan(0);
    }
    for (const { securityContext, resources: limits, name } of containers) {
      expect(securityContext, name).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ["ALL"] },
      });
      expect(limits, name).toMatchObject({
        requests: { cpu: expect.anything() },
        limits: { memory: expect.anything() },
      });
    }
  });

  test("its images are those that the Dockerfile makes, and each program is there", () => {
    const stages = new Set(
      [...readFileSync(join(root, "Dockerfile"), "utf8").matchAll(/ AS (\w+)$/gm)].map(([, s]) => s),
    );
    for (const { image, command } of containers) {
      expect(kustomization.images.map((one: Resource) => one.name)).toContain(image);
      expect(stages).toContain(image.replace("tephra-", ""));
      const program = command.find((word: string) => /\.(js|sh)$/.test(word));
      expect(existsSync(join(root, program)), program).toBe(true);
    }
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    for (const { newTag } of kustomization.images) expect(newTag).toBe(version);
  });

  test("every volume that is mounted is there, what is secret is a file, and no environment has a secret", () => {
    for (const { owner, name, env, volumeMounts } of containers) {
      const volumes = new Map<string, Resource>(podOf(owner).volumes.map((one: Resource) => [one.name, one]));
      for (const mount of volumeMounts) {
        const volume = volumes.get(mount.name);
        expect(volume, `${name}: ${mount.name}`).toBeDefined();
        if (volume.configMap) named("ConfigMap", volume.configMap.name);
        if (volume.persistentVolumeClaim) named("PersistentVolumeClaim", volume.persistentVolumeClaim.claimName);
        if (volume.secret) expect(volume.secret.defaultMode).toBe(0o440);
      }
      expect([...volumes.keys()].sort()).toEqual(volumeMounts.map((mount: Resource) => mount.name).sort());
      for (const { name: key, value } of env) {
        if (/_FILE$/.test(key)) expect(value, key).toMatch(/^\/run\/secrets\/tephra\//);
        else expect(key).not.toMatch(/URL|PASSWORD|KEY/);
      }
    }
  });

  test("the service accepts the configuration in the environment of each pod, and every folder that it names is mounted", () => {
    const secrets = join(dir, "secrets");
    mkdirSync(secrets);
    writeFileSync(join(secrets, "database_url"), "postgresql://tephra@postgres:5432/tephra");
    writeFileSync(join(secrets, "redis_url"), "redis://redis:6379");
    const text: string = named("ConfigMap", "tephra").data["tephra.yml"];
    writeFileSync(join(dir, "configured.yml"), text);
    for (const { name, env, volumeMounts } of containers) {
      const here = env.map((one: Resource) => [
        one.name,
        one.value
          .replace("/run/secrets/tephra", secrets)
          .replace("/etc/tephra/tephra.yml", join(dir, "configured.yml")),
      ]);
      const config = loadConfig(Object.fromEntries(here));
      const mounts: string[] = volumeMounts.map((mount: Resource) => mount.mountPath);
      const isThere = (path: string): boolean => mounts.some((mount) => `${path}/`.startsWith(`${mount}/`));
      expect(isThere(config.repositories[0]?.credentials ?? ""), name).toBe(true);
      const url = env.find((one: Resource) => one.name === "TEPHRA_NEW_REPOSITORY")?.value;
      if (url !== undefined) {
        expect(url).toBe(`${config.repositories[0]?.url}&credentials=${config.repositories[0]?.credentials}`);
        continue;
      }
      for (const backend of config.volume_backends) expect(isThere(backendFolder(backend) ?? ""), name).toBe(true);
      for (const path of config.import_roots) expect(isThere(path), path).toBe(true);
      if (name === "api") expect([config.host, config.port]).toEqual(["0.0.0.0", 8776]);
    }
  });

  test("probes, services, budgets, policies and the autoscaler lead to what there is", () => {
    const api = containers.find(({ name }) => name === "api");
    const ports = new Map<string, number>(api.ports.map((one: Resource) => [one.name, one.containerPort]));
    expect(ports.get("http")).toBe(8776);
    const routes = readFileSync(join(root, "apps/api/src/ops/routes.ts"), "utf8");
    for (const probe of ["startupProbe", "livenessProbe", "readinessProbe"]) {
      const { path, port } = api[probe].httpGet;
      expect(ports.has(port), probe).toBe(true);
      expect(routes).toContain(`["GET", "${path}", "public"`);
    }
    const labels = withPods.map((owner) => owner.spec.template.metadata.labels);
    const selects = (selector: Record<string, string>): number =>
      labels.filter((each) => Object.entries(selector).every(([key, value]) => each[key] === value)).length;
    const [service] = resources.filter(({ kind }) => kind === "Service");
    expect(selects(service.spec.selector)).toBe(1);
    for (const { targetPort } of service.spec.ports) expect(ports.has(targetPort)).toBe(true);
    for (const { kind, metadata, spec } of resources) {
      if (kind === "Deployment") expect(selects(spec.selector.matchLabels), metadata.name).toBe(1);
      if (kind === "PodDisruptionBudget") expect(selects(spec.selector.matchLabels), metadata.name).toBe(1);
    }
    expect(selects(named("NetworkPolicy", "tephra").spec.podSelector.matchLabels)).toBe(withPods.length);
    expect(named("NetworkPolicy", "tephra").spec.policyTypes).toEqual(["Ingress", "Egress"]);
    expect(named("NetworkPolicy", "tephra").spec.ingress).toBeUndefined();
    const [budgeted, scaled] = ["PodDisruptionBudget", "HorizontalPodAutoscaler"].map((kind) =>
      resources.filter((one) => one.kind === kind).map((one) => one.metadata.name),
    );
    expect(budgeted).toEqual(["tephra-api", "tephra-worker"]);
    expect(scaled).toEqual(["tephra-worker"]);
    const { scaleTargetRef, metrics } = named("HorizontalPodAutoscaler", "tephra-worker").spec;
    named(scaleTargetRef.kind, scaleTargetRef.name);
    const telemetry = readFileSync(join(root, "packages/control/src/telemetry/telemetry.ts"), "utf8");
    for (const { external } of metrics) expect(telemetry).toContain(`"${external.metric.name}"`);
    // Whoever stops is given the time that it may take: 5 s of drain, 3 of grace, 1 of farewell; of the API 9, after the sleep.
    for (const { spec } of withPods.filter(({ kind }) => kind === "Deployment")) {
      expect(spec.template.spec.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(20);
    }
  });
});

describe("deploy/systemd", () => {
  const units = readdirSync(join(root, "deploy/systemd"));
  const textOf = (name: string): string => readFileSync(join(root, "deploy/systemd", name), "utf8");
  let tools: Awaited<ReturnType<typeof unpackSystemd>>;
  let here = "";
  beforeAll(async () => {
    tools = await unpackSystemd((line) => process.stdout.write(`${line}\n`));
    here = join(dir, "units");
    mkdirSync(here);
    // As installed in this checkout.
    for (const name of units) writeFileSync(join(here, name), textOf(name).replaceAll("/opt/tephra", root));
  });

  test("systemd accepts every unit, and would not accept one that starts nothing", () => {
    const verify = (names: readonly string[]) =>
      spawnSync(tools.analyze, ["verify", ...names.map((name) => join(here, name.replace("@.", "@1.")))], {
        encoding: "utf8",
        env: { ...process.env, ...tools.env, SYSTEMD_UNIT_PATH: `${here}:` },
      });
    const { stdout, stderr } = verify(units);
    // What it has to say of the machine's own units is no concern of ours.
    expect(`${stdout}${stderr}`.split("\n").filter((line) => line.includes("tephra"))).toEqual([]);
    writeFileSync(
      join(here, "broken.service"),
      "[Service]\nExecStart=/opt/tephra-is-not-here/node\nProtectSystm=yes\n",
    );
    const broken = verify(["broken.service"]).stderr;
    expect(broken).toContain("ProtectSystm");
    expect(broken).toContain("/opt/tephra-is-not-here/node");
  });

  test.each(["tephra-api.service", "tephra-worker@.service"])(
    "%s is exposed to little, by systemd's own measure",
    (name) => {
      const args = ["security", "--offline=yes", "--threshold=25", "--no-pager", join(here, name.replace("@.", "@1."))];
      const text = execFileSync(tools.analyze, args, { encoding: "utf8", env: { ...process.env, ...tools.env } });
      expect(text).toMatch(/Overall exposure level for \S+: [012]\.\d OK/);
    },
  );

  test("every program that they start is there, runs with the flags of the image, and gets what is secret as a file", () => {
    const flags = /NODE_OPTIONS="(.*?)"/.exec(readFileSync(join(root, "Dockerfile"), "utf8"))?.[1];
    for (const name of units.filter((each) => each.endsWith(".service"))) {
      const text = textOf(name);
      const start = /^ExecStart=(.*)$/m.exec(text)?.[1] ?? "";
      const program = start.split(" ").at(-1)?.replace("/opt/tephra/", "") ?? "";
      expect(existsSync(join(root, program)), `${name}: ${program}`).toBe(true);
      if (start.includes("/node ")) expect(start).toContain(`node ${flags} `);
      const loaded = [...text.matchAll(/^LoadCredential=(\w+):/gm)].map(([, one]) => one);
      const read = [...text.matchAll(/^Environment=\w+_FILE=%d\/(\w+)$/gm)].map(([, one]) => one);
      expect(loaded).toEqual(read);
      expect(loaded).toContain("database_url");
      expect(text).not.toMatch(/^Environment=(DATABASE_URL|REDIS_URL)=/m);
      expect(text).toMatch(/^User=tephra$/m);
    }
  });
});
