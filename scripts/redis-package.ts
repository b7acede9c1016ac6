import { packageFile, unpackPackages } from "./debian-packages.ts";

/**
 * Debian's Redis, downloaded and unpacked without being installed: the system is unchanged, and no root is needed. Done once.
 *
 * @throws with the command to run when this is not Debian or its packages cannot be downloaded
 */
export async function unpackRedis(say: (line: string) => void): Promise<{ command: string; env: NodeJS.ProcessEnv }> {
  try {
    const { LD_LIBRARY_PATH } = await unpackPackages({ name: "redis", packages: ["redis-server"] }, say);
    return { command: packageFile("redis", "usr/bin/redis-server"), env: { LD_LIBRARY_PATH } };
  } catch (cause) {
    const advice = 'set REDIS_URL, or run "apt-get install redis-server" as root, and start again';
    throw new Error(`no Redis was found, and Debian's packages could not be had: ${advice}`, { cause });
  }
}
