import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { negotiate, VersionRangeError, versionMax, versionText } from "./microversions.ts";

describe("negotiate", () => {
  it("takes every version that it announces, wherever it stands in the header", () => {
    const other = fc.constantFrom("compute 2.1", "image 2", "baremetal 1.50");
    fc.assert(
      fc.property(fc.integer({ min: 0, max: versionMax }), fc.array(other), (version, others) => {
        const header = [...others, `volume ${versionText(version)}`, ...others].join(", ");
        expect(negotiate(header)).toBe(version);
      }),
    );
  });

  it("refuses every other version, and says which was asked for", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 99 }), fc.nat(), (major, minor) => {
        fc.pre(major !== 3 || minor > versionMax);
        const asked = `${major}.${minor}`;
        expect(() => negotiate(`volume ${asked}`)).toThrow(VersionRangeError);
        expect(() => negotiate(`volume ${asked}`)).toThrow(`Version ${asked} is not supported`);
      }),
    );
  });

  it("answers any header with a version or a refusal that a client can read", () => {
    fc.assert(
      fc.property(fc.string(), (header) => {
        try {
          expect(negotiate(header)).toBeLessThanOrEqual(versionMax);
        } catch (error) {
          expect(error).toMatchObject({ status: expect.toBeOneOf([400, 406]) });
        }
      }),
    );
  });
});
