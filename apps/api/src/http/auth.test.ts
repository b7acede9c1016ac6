import { createHash } from "node:crypto";
import { type Config, roles } from "@tephra/control";
import { describe, expect, it } from "vitest";
import { authenticator } from "./auth.ts";
import { may, type Rule } from "./policy.ts";
import { UnauthenticatedError } from "./refusals.ts";

const project = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/** Mode `static` with one token per role, named after the role. */
const authOf = (more: Partial<Config["auth"]> = {}): Config["auth"] => ({
  mode: "static",
  tokens: roles.map((role) => ({
    sha256: createHash("sha256").update(role).digest("hex").toUpperCase(),
    user_id: `user-${role}`,
    project_id: project,
    roles: [role],
  })),
  keystone: null,
  enforce_new_defaults: true,
  ...more,
});

const allowed = async (auth: Config["auth"], token: string, rules: readonly Rule[]): Promise<boolean[]> => {
  const principal = await authenticator(auth)(token, "req-1");
  return rules.map((rule) => may(principal, rule));
};

describe("mode static", () => {
  it("knows a token by its SHA-256 alone", async () => {
    const principal = await authenticator(authOf())("member", "req-1");
    expect(principal).toEqual({
      userId: "user-member",
      projectId: project,
      roles: ["member"],
      isAdmin: false,
      requestId: "req-1",
    });
  });

  it.each([undefined, "", "membe", "member ", "MEMBER", createHash("sha256").update("member").digest("hex")])(
    "does not know %j",
    async (token) => {
      await expect(authenticator(authOf())(token, "req-1")).rejects.toBeInstanceOf(UnauthenticatedError);
    },
  );
});

describe("Cinder's deprecated defaults", () => {
  const rules: readonly Rule[] = ["backup:get", "backup:create", "backup:restore", "backup:export-import"];

  it("are not in force unless they are asked for", async () => {
    expect(await allowed(authOf(), "reader", rules)).toEqual([true, false, false, false]);
  });

  it("let whoever has a token of the project do what a member may, and never what an admin may", async () => {
    const old = authOf({ enforce_new_defaults: false });
    expect(await allowed(old, "reader", rules)).toEqual([true, true, true, false]);
    expect(await allowed(old, "member", rules)).toEqual([true, true, true, false]);
    expect(await allowed(old, "observer", rules)).toEqual([true, false, false, false]);
    expect(await allowed(old, "admin", rules)).toEqual([true, true, true, true]);
  });
});

describe("mode none", () => {
  it("takes USER:PROJECT as given, and nobody for the admin", async () => {
    const authenticate = authenticator(authOf({ mode: "none" }));
    expect(await authenticate("ann:abc", "req-1")).toMatchObject({ userId: "ann", projectId: "abc", isAdmin: true });
    expect(await authenticate(undefined, "req-1")).toMatchObject({ userId: "admin", isAdmin: true });
    for (const token of ["", "ann", "ann:", ":abc", "a b:c", "ann:a/b"]) {
      await expect(authenticate(token, "req-1"), token).rejects.toBeInstanceOf(UnauthenticatedError);
    }
  });
});
