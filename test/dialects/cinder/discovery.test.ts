import { expect, it } from "vitest";
import { startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";

it("tells its versions without a token, and negotiates one for every request", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "discovery");
  await golden.ask("root", "GET", "/");
  await golden.ask("root at a version", "GET", "/", { version: 50 });
  await golden.ask("root takes GET only", "POST", "/", { body: {} });
  await golden.ask("v3 without a slash", "GET", "/v3");
  await golden.ask("v3", "GET", "/v3/");
  await golden.ask("v3 of a project", "GET", `/v3/${project}`);
  await golden.ask("healthcheck", "GET", "/healthcheck");
  const versions = {
    none: undefined,
    lowest: "volume 3.0",
    highest: "volume 3.71",
    latest: "volume latest",
    "two services": "compute 2.1, volume 3.5",
    "beyond the range": "volume 3.999",
    "below the range": "volume 2.9",
    "next major": "volume 4.0",
    "latest in capitals": "volume LATEST",
    "a word": "volume abc",
    "three parts": "volume 3.1.2",
    "no digit": "volume 3.x",
    "leading zero": "volume 03.1",
    "other service": "compute 2.1",
    "service alone": "volume",
    empty: "",
  };
  for (const [name, header] of Object.entries(versions)) {
    const headers = header === undefined ? {} : { "openstack-api-version": header };
    await golden.ask(`version: ${name}`, "GET", `/v3/${project}/backups`, { headers });
  }
  golden.check();
});

it("has no route but its own, in exactly its own spelling", async () => {
  await using instance = await startApiOnly();
  const wrong: [string, string][] = [
    ["GET", "/v3/backpacks"],
    ["GET", `/v3/${project}/backpacks`],
    ["GET", "/v3/Backups"],
    ["GET", "/v3/backups/"],
    ["PATCH", "/v3/backups"],
    ["DELETE", "/v3/backups"],
    ["POST", "/v3/backups/detail"],
    ["HEAD", "/v3/backups"],
    ["GET", "/v3/not-hex-project/backups"],
    ["GET", "/v2/backups"],
    ["GET", "/nope"],
    ["POST", "/healthz"],
  ];
  for (const [method, path] of wrong) {
    const plain = await instance.request(method, path, undefined, { accept: "text/plain" });
    expect([method, path, plain.status]).toEqual([method, path, 404]);
    if (method === "HEAD") continue;
    expect(plain.text).toBe("404 Not Found\n\nThe resource could not be found.\n\n   ");
    const json = await instance.request(method, path, undefined, { accept: "application/json" });
    const message = "The resource could not be found.<br /><br />\n\n\n";
    expect(json.body).toEqual({ message, code: "404 Not Found", title: "Not Found" });
    const page = await instance.request(method, path, undefined, { accept: "*/*" });
    expect(page.text).toMatch(/^<html>\n <head>\n {2}<title>404 Not Found<\/title>/);
  }
});
