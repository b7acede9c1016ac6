import { type Principal, type Role, roles } from "@tephra/control";
import { describe, expect, it } from "vitest";
import type { Context } from "./context.ts";
import { allow, may, type Rule } from "./http/policy.ts";
import { v3Router } from "./openstack/serve.ts";

const as = (role: Role): Principal => ({
  userId: "u",
  projectId: "p",
  roles: [role],
  isAdmin: role === "admin",
  requestId: "req-1",
});

describe("policy", () => {
  it("gives each role what the lesser ones have", () => {
    const allowed = (role: Role) =>
      (["backup:get", "backup:create", "ops:import"] as const).map((rule) => may(as(role), rule));
    expect(allowed("reader")).toEqual([true, false, false]);
    expect(allowed("member")).toEqual([true, true, false]);
    expect(allowed("admin")).toEqual([true, true, true]);
  });

  it("keeps a named project for its own members and for admins", () => {
    expect(may(as("member"), "volume_extension:quotas:show", "p")).toBe(true);
    expect(may(as("member"), "volume_extension:quotas:show", "q")).toBe(false);
    expect(may(as("admin"), "volume_extension:quotas:show", "q")).toBe(true);
  });

  it("asks for the roles of Cinder's new defaults (cinder-api 3.3)", () => {
    const least: Record<Role, readonly Rule[]> = {
      reader: ["backup:get_all", "backup:get"],
      member: ["backup:create", "backup:update", "backup:delete", "backup:restore"],
      admin: [
        "backup:backup_project_attribute",
        "backup:backup-import",
        "backup:export-import",
        "volume_extension:backup_admin_actions:reset_status",
        "volume_extension:backup_admin_actions:force_delete",
        "volume_extension:services:index",
        "volume_extension:services:update",
        "volume_extension:quotas:update",
        "volume_extension:quotas:delete",
        "volume_extension:quota_classes:get",
        "volume_extension:quota_classes:update",
      ],
    };
    for (const [index, role] of roles.entries()) {
      for (const rule of least[role]) {
        const allowed = roles.map((mine) => may(as(mine), rule));
        expect(allowed, rule).toEqual(roles.map((_, at) => at >= index));
      }
    }
  });

  it("refuses in Cinder's words", () => {
    expect(() => allow(as("reader"), "backup:create")).toThrow("Policy doesn't allow backup:create to be performed.");
  });

  it("lets no route start that has no entry in the table", () => {
    const rule = "backup:forgotten" as Rule;
    const action = { handle: async () => ({ status: 200 }) };
    expect(() => v3Router({} as Context, [["GET", "/x", rule, action]])).toThrow("GET /x");
    expect(() => v3Router({} as Context, [["ACTION", "/x", { a: [rule, action] }]])).toThrow("backup:forgotten");
    const inherited = "toString" as Rule;
    expect(() => v3Router({} as Context, [["GET", "/x", inherited, action]])).toThrow("no entry");
  });
});
