import fc from "fast-check";
import { expect, test } from "vitest";
import { type JsonValue, pythonJson, pythonString } from "./python-json.ts";

test("strings are ASCII and mean the same", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      const encoded = pythonString(text);
      expect(encoded).toMatch(/^[ -~]*$/);
      expect(JSON.parse(encoded)).toBe(text);
    }),
  );
});

test("escapes are those of Python's json module", () => {
  // print(json.dumps("\x7f\xe9\u2028\U0001f600\b\f\n\r\t\"\\/\x00"))
  expect(pythonString('\u007f\u00e9\u2028\u{1f600}\b\f\n\r\t"\\/\u0000')).toBe(
    String.raw`"\u007f\u00e9\u2028\ud83d\ude00\b\f\n\r\t\"\\/\u0000"`,
  );
});

test("documents have Python's separators and mean the same", () => {
  expect(pythonJson({ a: [1, null, true], b: { c: "é" }, d: [], e: {} })).toBe(
    String.raw`{"a": [1, null, true], "b": {"c": "\u00e9"}, "d": [], "e": {}}`,
  );
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.oneof(fc.integer(), fc.boolean(), fc.string())), (document) => {
      expect(JSON.parse(pythonJson(document as JsonValue))).toEqual(JSON.parse(JSON.stringify(document)));
    }),
  );
});
