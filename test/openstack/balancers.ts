import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../../scripts/bootstrap.mjs";
import { unpackHaproxy } from "../../scripts/haproxy-package.ts";
import { unpackNginx } from "../../scripts/nginx-package.ts";
import { type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import type { CinderServer } from "../kit/cinder.ts";
import type { Instance } from "../kit/instance.ts";

/** In front of both; its files are in the instance's folder. */
interface Placed {
  instance: Instance;
  cinder: CinderServer;
  port: number;
}

/** An example of ours, with the addresses of this run. */
const exampleAt = (file: string, { instance, cinder, port }: Placed): string =>
  readFileSync(join(root, "deploy", file), "utf8")
    .replaceAll("tephra:8776", new URL(instance.url).host)
    .replaceAll("cinder:8776", new URL(cinder.url).host)
    .replace("bind :8776", `bind 127.0.0.1:${port}`)
    .replace("listen 8776", `listen 127.0.0.1:${port}`);
const say = (line: string): unknown => process.stderr.write(`${line}\n`);

export async function startHaproxy(placed: Placed): Promise<Program> {
  const { command, env } = await unpackHaproxy(say);
  const file = join(placed.instance.dataDir, "haproxy.cfg");
  writeFileSync(file, exampleAt("haproxy/haproxy.cfg", placed));
  return spawnProgram({ name: "haproxy", command, args: ["-db", "-f", file], env });
}

export async function startNginx(placed: Placed): Promise<Program> {
  const { command, env } = await unpackNginx(say);
  const home = join(placed.instance.dataDir, "nginx");
  mkdirSync(home, { recursive: true });
  const places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${home}/${name};`)
    .join(" ");
  const example = exampleAt("nginx/nginx.conf", placed).replace("http {", `http { access_log off; ${places}`);
  writeFileSync(join(home, "nginx.conf"), `daemon off; pid ${home}/pid; error_log stderr;\n${example}`);
  return spawnProgram({ name: "nginx", command, args: ["-p", home, "-c", join(home, "nginx.conf")], env });
}
