import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { strict, strippedText, uuid, uuidOf } from "../openstack/fields.ts";
import { pythonRepr } from "../openstack/python-text.ts";
import { parseBody } from "../openstack/schema-errors.ts";
import { createBackupBody } from "./backups/schemas.ts";

describe("uuidOf", () => {
  it("reads an id in every form that Python's uuid module reads", () => {
    const dressed = fc.constantFrom<(id: string) => string>(
      (id) => id,
      (id) => id.toUpperCase(),
      (id) => id.replaceAll("-", ""),
      (id) => `{${id}}`,
      (id) => `urn:uuid:${id}`,
    );
    fc.assert(
      fc.property(fc.uuid(), dressed, (id, dress) => {
        expect(uuidOf(dress(id))).toBe(id);
      }),
    );
  });
});

describe("parseBody", () => {
  const schema = strict({ item: strict({ id: uuid(), name: strippedText() }) });

  it("either takes a body or refuses it with 400, whatever JSON it is", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (json) => {
        for (const body of [json, { item: json }, { item: { id: json } }, { backup: json }]) {
          for (const candidate of [schema, createBackupBody(71)]) {
            try {
              parseBody<unknown>(candidate, body);
            } catch (error) {
              expect(error).toMatchObject({ name: "Refusal", status: 400 });
            }
          }
        }
      }),
    );
  });

  it("names the innermost fault first: a value, then what is missing, then what is too much", () => {
    const id = "11111111-2222-3333-4444-555555555555";
    const message = (body: unknown) => {
      try {
        return parseBody<unknown>(schema, body);
      } catch (error) {
        return (error as Error).message;
      }
    };
    expect(message({ item: { name: 5, more: 1 }, extra: 1 })).toContain("field/attribute name. Value: 5.");
    expect(message({ item: { more: 1 }, extra: 1 })).toContain("'id' is a required property");
    expect(message({ item: { id, more: 1 }, extra: 1 })).toContain("('more' was unexpected)");
    expect(message({ item: { id }, extra: 1 })).toBe("Additional properties are not allowed ('extra' was unexpected)");
    expect(message({ item: { id, name: " x " } })).toEqual({ item: { id, name: "x" } });
  });
});

describe("pythonRepr", () => {
  it("writes JSON values as Python does", () => {
    expect(pythonRepr({ a: [1, true, null, "x"], b: false })).toBe("{'a': [1, True, None, 'x'], 'b': False}");
    expect(pythonRepr("it's")).toBe(`"it's"`);
    expect(pythonRepr(`it's "it"`)).toBe(`'it\\'s "it"'`);
    expect(pythonRepr("a\n\t\\\u0000\u200b")).toBe("'a\\n\\t\\\\\\x00\\u200b'");
  });
});
