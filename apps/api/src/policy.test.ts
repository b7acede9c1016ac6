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
    expect(allowed("observer")).toEqual([true, false, false]);
    expect(allowed("admin")).toEqual([true, true, true]);
  });

  it("keeps a named project for its own members and for who sees all", () => {
    expect(may(as("member"), "volume_extension:quotas:show", "p")).toBe(true);
    expect(may(as("member"), "volume_extension:quotas:show", "q")).toBe(false);
    expect(may(as("observer"), "volume_extension:quotas:show", "q")).toBe(true);
    expect(may(as("observer"), "volume_extension:quotas:update", "q")).toBe(false);
    expect(may(as("admin"), "volume_extension:quotas:show", "q")).toBe(true);
  });

  it("asks for the roles of Cinder's new defaults (cinder-api 3.3), and lets an observer read what an admin may", () => {
    const least: Record<Role, readonly Rule[]> = {
      reader: ["backup:get_all", "backup:get"],
      member: ["backup:create", "backup:update", "backup:delete", "backup:restore"],
      observer: [
        "backup:backup_project_attribute",
        "volume_extension:services:index",
        "volume_extension:quota_classes:get",
        "ops:audit",
        "ops:workers",
        "ops:queues",
        "ops:repository",
        "ops:notifications",
        "ops:limits",
        "ops:about",
      ],
      admin: [
        "backup:backup-import",
        "backup:export-import",
        "volume_extension:backup_admin_actions:reset_status",
        "volume_extension:backup_admin_actions:force_delete",
        "volume_extension:services:update",
        "volume_extension:quotas:update",
        "volume_extension:quotas:delete",
        "volume_extension:quota_classes:update",
        "ops:notifications:retry",
        "ops:limits:set",
      ],
    };
    const withAll: Record<Role, readonly Role[]> = {
      reader: roles,
      member: ["member", "admin"],
      observer: ["observer", "admin"],
      admin: ["admin"],
    };
    for (const role of roles) {
      for (const rule of least[role]) {
        expect(
          roles.filter((mine) => may(as(mine), rule)),
          rule,
        ).toEqual(withAll[role]);
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
