import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseRedisUrl, redisConnection } from "./redis-options.ts";

const secret = fc.string({ minLength: 1, maxLength: 12 });
const host = fc.constantFrom("redis", "10.0.0.7", "[::1]", "a-b.example.org");
const bare = (text: string): string => text.replace(/^\[|\]$/g, "");

describe("the URL of Redis", () => {
  it("is obeyed in every part by what connects", () => {
    fc.assert(
      fc.property(
        fc.record({
          tls: fc.boolean(),
          username: fc.option(secret),
          password: fc.option(secret),
          host,
          port: fc.option(fc.integer({ min: 1, max: 65_535 })),
          db: fc.option(fc.integer({ min: 0, max: 1000 })),
          family: fc.option(fc.constantFrom(4, 6)),
          servername: fc.option(fc.constantFrom("redis.example.org")),
        }),
        (given) => {
          const user = given.username === null ? "" : encodeURIComponent(given.username);
          const password = given.password === null ? "" : `:${encodeURIComponent(given.password)}`;
          const query = new URLSearchParams();
          if (given.family !== null) query.set("family", String(given.family));
          if (given.tls && given.servername !== null) query.set("servername", given.servername);
          const port = given.port === null ? "" : `:${given.port}`;
          const db = given.db === null ? "" : `/${given.db}`;
          const scheme = given.tls ? "rediss" : "redis";
          const made = redisConnection(`${scheme}://${user}${password}@${given.host}${port}${db}?${query}`);
          const tls = given.servername === null ? {} : { servername: given.servername };
          expect(made).toEqual({
            host: bare(given.host),
            port: given.port ?? 6379,
            db: given.db ?? 0,
            ...(given.username === null ? {} : { username: given.username }),
            ...(given.password === null ? {} : { password: given.password }),
            ...(given.family === null ? {} : { family: given.family }),
            ...(given.tls ? { tls } : {}),
          });
        },
      ),
    );
  });

  it("with a parameter that nothing obeys is refused with its name, and shows no secret", () => {
    const known = ["db", "family", "ca", "cert", "key", "servername", "sentinel_username", "sentinel_password"];
    const other = fc.string({ minLength: 1, maxLength: 12 }).filter((name) => !known.includes(name));
    fc.assert(
      fc.property(fc.oneof(other, fc.constantFrom("ssl_cert_reqs", "keyPrefix", "protocol", "__proto__")), (name) => {
        const url = `rediss://u:s3cr3t@redis/0?${new URLSearchParams({ [name]: "1" })}`;
        expect(() => parseRedisUrl(url)).toThrow(JSON.stringify(name));
        expect(() => parseRedisUrl(url)).not.toThrow(/s3cr3t/);
      }),
    );
  });

  it.each([
    ["redis+cluster://a,b", /Cluster is not supported/],
    ["redis://a,b", /require Sentinel/],
    ["redis://a/0?db=1", /path and as parameter db/],
    ["redis://a/x", /database must be a number/],
    ["redis://a?ca=/x.pem", /"ca" is not supported/],
    ["rediss://a?ca=", /ca is empty/],
    ["rediss://a?cert=/x.pem", /cert and key must be given together/],
    ["redis://a?db=1&db=2", /db is given more than once/],
    ["redis://a:0", /port/],
    ["redis://a#x", /must be a URL/],
    ["redis://:%zz@a", /password contains a %/],
    ["redis+sentinel://a", /name of the primary/],
    ["unix://host/path", /absolute path/],
    ["http://a", /scheme must be one of/],
    ["redis://a?sentinel_password=x", /"sentinel_password" is not supported/],
  ])("%s is refused with a sentence", (url, sentence) => {
    expect(() => parseRedisUrl(url)).toThrow(sentence);
  });

  it("names a socket, or Sentinels and the primary that they know", () => {
    expect(redisConnection("unix:///run/redis%20a.sock?db=3")).toEqual({ path: "/run/redis a.sock", db: 3 });
    expect(redisConnection("redis+sentinel://:p@one,two:5000/backups/2?sentinel_password=q")).toEqual({
      sentinels: [
        { host: "one", port: 26_379 },
        { host: "two", port: 5000 },
      ],
      name: "backups",
      password: "p",
      sentinelPassword: "q",
      db: 2,
    });
  });
});
