import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, normalize, relative } from "node:path";
import { parseEnv } from "node:util";
import { backendFolder, loadConfig } from "@tephra/control/process";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { root } from "../../scripts/bootstrap.mjs";

// No container engine is needed: the files are resolved as an engine would, and every name in them must lead somewhere.

interface Service {
  secrets?: string[];
  image?: string;
  build?: { context: string; target: string };
  command?: string[];
  environment?: Record<string, string>;
  volumes?: string[];
  depends_on?: Record<string, { condition: string }>;
  healthcheck?: { test: string[] };
}

interface Compose {
  services: Record<string, Service>;
  secrets: Record<string, { file: string }>;
  volumes: Record<string, null>;
}

const text = readFileSync(join(root, "docker-compose.yml"), "utf8");
const variables = parseEnv(readFileSync(join(root, ".env.example"), "utf8"));
const interpolated = text.replace(
  /\$\{(\w+)(?::\?)?\}/g,
  (_, name: string) => variables[name] ?? `<${name} is not set>`,
);
const compose = parse(interpolated, { merge: true }) as Compose;
const services = Object.entries(compose.services);
const stages = parseDockerfile(readFileSync(join(root, "Dockerfile"), "utf8"));

interface Copy {
  from: string | null;
  sources: string[];
  target: string;
}

interface Stage {
  name: string;
  base: string;
  copies: Copy[];
  command: string[] | null;
}

function parseDockerfile(dockerfile: string): Stage[] {
  const found: Stage[] = [];
  for (const line of dockerfile.split("\n")) {
    const [instruction, ...words] = line.split(/\s+/);
    const stage = found.at(-1);
    if (instruction === "FROM") {
      found.push({ name: words[2] ?? "", base: words[0] ?? "", copies: [], command: null });
    } else if (instruction === "COPY" && stage !== undefined) {
      const from = words[0]?.startsWith("--from=") ? words.shift()?.slice("--from=".length) : null;
      stage.copies.push({ from: from ?? null, sources: words.slice(0, -1), target: words.at(-1) ?? "" });
    } else if (instruction === "CMD" && stage !== undefined) {
      stage.command = JSON.parse(line.slice("CMD ".length));
    }
  }
  return found;
}

function stageNamed(name: string): Stage {
  const stage = stages.find((candidate) => candidate.name === name);
  if (stage === undefined) throw new Error(`the Dockerfile has no stage ${name}`);
  return stage;
}

/** Whether a file of the checkout (built) is in the image of a stage, at the same path below the working folder. */
function inImage(stage: Stage, file: string): boolean {
  const base = stages.find((candidate) => candidate.name === stage.base);
  if (base !== undefined && inImage(base, file)) return true;
  return stage.copies.some(({ from, sources, target }) =>
    sources.some((source) => {
      const path = from === null ? source : relative("/app", source);
      const place = sources.length > 1 || target.endsWith("/") ? join(target, basename(path)) : target;
      const inside = relative(normalize(place), file);
      return !inside.startsWith("..") && existsSync(join(root, path, inside));
    }),
  );
}

describe("docker-compose.yml and Dockerfile", () => {
  test("every variable is explained in .env.example, and none there is idle", () => {
    const used = [...text.matchAll(/\$\{(\w+)/g)].map(([, name]) => name);
    expect([...new Set(used)].sort()).toEqual(Object.keys(variables).sort());
    expect(interpolated).not.toContain("is not set");
  });

  test("every build context and stage exists", () => {
    for (const [, { build }] of services.filter(([, service]) => service.build !== undefined)) {
      expect(existsSync(join(root, build?.context ?? "missing", "Dockerfile"))).toBe(true);
      expect(stages.map((stage) => stage.name)).toContain(build?.target);
    }
  });

  test("every source that is copied exists and is not kept out of the context", () => {
    const ignored = readFileSync(join(root, ".dockerignore"), "utf8").trim().split("\n");
    for (const { from, sources } of stages.flatMap((stage) => stage.copies)) {
      for (const source of sources) {
        const path = from === null ? source : relative("/app", source);
        expect(existsSync(join(root, path)), path).toBe(true);
        if (from === null) expect(ignored, path).not.toContain(path.split("/")[0]);
        else expect(stages.map((stage) => stage.name)).toContain(from);
      }
    }
  });

  test("every workspace's manifest is there before the packages are installed", () => {
    const manifests = ["packages", "apps"].flatMap((folder) =>
      readdirSync(join(root, folder)).map((name) => join(folder, name, "package.json")),
    );
    const copied = stageNamed("build").copies.flatMap((copy) => copy.sources);
    expect(copied).toEqual(expect.arrayContaining(manifests));
  });

  test("every program that is started is in the image that starts it", () => {
    for (const [name, { build, command }] of services.filter(([, service]) => service.build !== undefined)) {
      const stage = stageNamed(build?.target ?? "");
      for (const words of [command, stage.command]) {
        const file = words?.find((word) => /\.(js|sh)$/.test(word)) ?? "no file";
        expect(inImage(stage, file), `${name}: ${file}`).toBe(true);
      }
    }
    const script = readFileSync(join(root, "deploy/migrate.sh"), "utf8");
    for (const [, file] of script.matchAll(/node (\S+\.js)/g)) {
      const built = file?.startsWith("node_modules/") || inImage(stageNamed("migrate"), dirname(dirname(file ?? "")));
      expect(existsSync(join(root, file ?? "")) && built, file).toBe(true);
    }
  });

  test("every volume, secret and service that is referred to is declared", () => {
    for (const [name, service] of services) {
      for (const volume of service.volumes ?? [])
        expect(compose.volumes, name).toHaveProperty(volume.split(":")[0] ?? "");
      for (const secret of service.secrets ?? []) expect(Object.keys(compose.secrets), name).toContain(secret);
      for (const other of Object.keys(service.depends_on ?? {})) expect(compose.services, name).toHaveProperty(other);
      for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
        if (condition === "service_healthy") expect(compose.services[other], other).toHaveProperty("healthcheck");
      }
    }
  });

  test("no secret stands in the file, in an environment or on a command line", () => {
    expect(text).not.toMatch(/PASSWORD:\s|_KEY:\s|requirepass/);
    for (const [name, { environment = {} }] of services) {
      for (const [key, value] of Object.entries(environment)) {
        if (/PASSWORD|_URL/.test(key)) expect(value, `${name}: ${key}`).toMatch(/^\/run\/secrets\//);
      }
    }
  });

  describe("the secrets that deploy/make-secrets.sh makes", () => {
    let dir = "";
    beforeAll(() => {
      dir = mkdtempSync(join(tmpdir(), "tephra-compose-"));
      mkdirSync(join(dir, "deploy"));
      copyFileSync(join(root, "deploy/make-secrets.sh"), join(dir, "deploy/make-secrets.sh"));
      execFileSync("sh", [join(dir, "deploy/make-secrets.sh")]);
    });
    afterAll(() => rmSync(dir, { recursive: true }));

    const secret = (name: string): string => readFileSync(join(dir, "secrets", name), "utf8");

    test("are all that the compose file names, in a folder that others cannot enter", () => {
      for (const { file } of Object.values(compose.secrets)) expect(existsSync(join(dir, file)), file).toBe(true);
      expect(statSync(join(dir, "secrets")).mode & 0o777).toBe(0o700);
    });

    test("stay as they are when it is run again", () => {
      const before = Object.keys(compose.secrets).map(secret);
      execFileSync("sh", [join(dir, "deploy/make-secrets.sh")]);
      expect(Object.keys(compose.secrets).map(secret)).toEqual(before);
    });

    test("agree with each other", () => {
      expect(secret("database_url")).toContain(`:${secret("postgres_password")}@postgres:5432/`);
      expect(secret("redis_url")).toContain(`:${secret("redis_password")}@redis:6379/`);
      expect(secret("redis.conf")).toContain(`requirepass ${secret("redis_password")}\n`);
      const [identity] = JSON.parse(secret("s3.json")).identities;
      const { access_key, secret_key } = JSON.parse(secret("s3_credentials"));
      expect(identity.credentials).toEqual([{ accessKey: access_key, secretKey: secret_key }]);
    });

    test.each(["api", "worker"])("make a configuration of the %s that passes the schema", (name) => {
      const service = compose.services[name];
      const inContainer = Object.entries(service?.environment ?? {});
      const here = inContainer.map(([key, value]) => [key, value.replace("/run/secrets", join(dir, "secrets"))]);
      const config = loadConfig(Object.fromEntries(here));
      expect(config.auth.tokens[0]?.sha256).toBe(createHash("sha256").update(secret("token")).digest("hex"));
      expect(config.database_url).toBe(secret("database_url"));
      // The repository is one that every host reaches, and marked before anybody starts.
      expect(config.repositories[0]?.url).toMatch(/^s3:\/\/tephra\?endpoint=http:\/\/s3:8333$/);
      expect(compose.services["migrate"]?.environment?.["TEPHRA_NEW_REPOSITORY"]).toContain(
        `${config.repositories[0]?.url}&credentials=${config.repositories[0]?.credentials}`,
      );
      // Whatever else it names must be a folder that the container has.
      const mounts = service?.volumes?.map((volume) => volume.split(":")[1]);
      expect(mounts).toContain(config.volume_backends[0] && backendFolder(config.volume_backends[0]));
      expect(mounts).toEqual(expect.arrayContaining(config.import_roots));
    });
  });
});
