import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { openRepository } from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { temporaryFolder } from "../../format/backup-fixture.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { type SwiftServer, startSwift } from "../../kit/swift.ts";

const MiB = 1024 * 1024;

let server: SwiftServer;
beforeAll(async () => {
  server = await startSwift();
});
afterAll(() => server[Symbol.asyncDispose]());

describe("a backup through the whole service", () => {
  it.each(["s3", "swift"] as const)(
    "into %s is restored exactly, names its service and zone, and goes without a trace",
    async (driver) => {
      const place = `b-${randomUUID()}`;
      await using folder = await temporaryFolder();
      const credentials = join(folder.path, "credentials.json");
      const names = driver === "s3" ? ["access_key", "secret_key"] : ["user", "key"];
      writeFileSync(credentials, JSON.stringify({ [String(names[0])]: server.user, [String(names[1])]: server.key }));
      const url =
        driver === "s3"
          ? `s3://${place}?endpoint=${server.url}`
          : `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0`;
      await initialiseRepository(`${url}&credentials=${encodeURIComponent(credentials)}`);
      const stored = { name: "main", url, credentials, zone: "az7", object_bytes: 512 * 1024 };
      await using instance = await startInstance({
        workers: 2,
        config: { repositories: [stored], range_bytes: 2 * MiB, worker: { slots: 2 } },
      });
      const user = journeyOn(instance);
      const image = join(instance.dataDir, "disk.img");
      const size = 9 * MiB + 12_345;
      await writeIslands(image, size, [
        { offset: 0, data: randomBytesOf("a", 5 * MiB) },
        { offset: size - 5000, data: randomBytesOf("tail", 5000) },
      ]);
      const volume = await user.importVolume(image);
      const full = await user.backUp(volume, { name: "full" });
      const first = await sha256Of(image);
      await writeIslands(user.volumeFile(volume), null, [{ offset: 3 * MiB + 100, data: randomBytesOf("c", 70_000) }]);
      const second = await sha256Of(user.volumeFile(volume));
      const incremental = await user.backUp(volume, { name: "incremental", incremental: true });
      await user.expectExact(full, first);
      await user.expectExact(incremental, second);

      const shown = (await user.get(`/v3/${project}/backups/${full}`)).backup;
      expect(shown).toMatchObject({ status: "available", container: place, availability_zone: "az7" });
      const [row] = await instance.sql("SELECT service, service_metadata FROM backups WHERE id = $1", [full]);
      expect(row.service).toMatch(driver === "s3" ? /S3BackupDriver$/ : /SwiftBackupDriver$/);
      expect(row.service_metadata).toMatch(new RegExp(`^volume_${volume}/\\d{14}/az_az7_backup_${full}$`));

      await user.deleteBackup(incremental);
      await user.deleteBackup(full);
      await user.expectQuiet();
      await using repository = await openRepository(url, { credentials });
      expect(await Array.fromAsync(repository.list(place, ""))).toEqual([]);
      expect(instance.logs()).not.toContain(`"${server.key}"`);
      const rows = await instance.sql("SELECT plan::text AS plan FROM operations");
      expect(JSON.stringify(rows)).not.toContain(credentials);
    },
    180_000,
  );
});
