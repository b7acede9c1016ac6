import fc from "fast-check";
import { expect, test } from "vitest";
import { JsonReader, jsonDepthMax, jsonValuesMax, parseStrictJson, UnusableJsonError } from "./strict-json.ts";

const document = fc.dictionary(fc.string({ unit: "binary" }), fc.jsonValue({ maxDepth: 5, stringUnit: "binary" }));

/** Every object within a value. */
function objectsIn(value: unknown): Record<string, unknown>[] {
  if (typeof value !== "object" || value === null) return [];
  const inner = Object.values(value).flatMap(objectsIn);
  return Array.isArray(value) ? inner : [value as Record<string, unknown>, ...inner];
}

/** JSON in which one object, the `pick`th of those with members, has one of its keys duplicated; null when there is none. */
function withTwin(value: unknown, pick: number, escaped: boolean): string | null {
  const filled = objectsIn(value).filter((object) => Object.keys(object).length > 0);
  const chosen = filled[pick % Math.max(1, filled.length)];
  if (chosen === undefined) return null;
  const write = (each: unknown): string => {
    if (typeof each !== "object" || each === null) return JSON.stringify(each);
    if (Array.isArray(each)) return `[${each.map(write).join(",")}]`;
    const members = Object.entries(each).map(([key, inner]) => `${JSON.stringify(key)}: ${write(inner)}`);
    const [first = ""] = Object.keys(each);
    if (each === chosen) members.push(`${escaped ? escaped16(first) : JSON.stringify(first)}: null`);
    return `{${members.join(",")}}`;
  };
  return write(value);
}

const escaped16 = (text: string): string =>
  `"${Array.from({ length: text.length }, (_, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`).join("")}"`;

function read(text: Uint8Array, cuts: readonly number[] = []): [string, unknown][] {
  const values: [string, unknown][] = [];
  const reader = new JsonReader({
    wish: (key) => (key.startsWith("l") ? "elements" : key.startsWith("c") ? "check" : "value"),
    onValue: (key, value) => values.push([key, value]),
  });
  let from = 0;
  for (const cut of [...cuts, text.length].map((each) => Math.min(each, text.length)).sort((a, b) => a - b)) {
    reader.write(text.subarray(from, cut));
    from = cut;
  }
  reader.end();
  return values;
}

test("what JSON.parse reads is read alike, however its bytes are cut", () => {
  fc.assert(
    fc.property(document, fc.array(fc.nat(400)), (value, cuts) => {
      const text = Buffer.from(JSON.stringify(value));
      expect(parseStrictJson(text)).toEqual(JSON.parse(text.toString("utf8")));
      const renamed = Object.fromEntries(Object.entries(value).map(([key, inner]) => [`v${key}`, inner]));
      expect(read(Buffer.from(JSON.stringify(renamed)), cuts)).toEqual(
        Object.entries(JSON.parse(JSON.stringify(renamed))),
      );
    }),
  );
});

test("a key twice is refused in every object, wanted or not, however it is spelled", () => {
  fc.assert(
    fc.property(document, fc.nat(), fc.boolean(), fc.constantFrom("v", "c", "l"), (value, pick, escaped, wish) => {
      const text = withTwin(value, pick, escaped);
      if (text === null) return;
      expect(() => parseStrictJson(text)).toThrow(UnusableJsonError);
      expect(() => read(Buffer.from(`{"${wish}": [${text}]}`))).toThrow("twice");
    }),
  );
});

test.each([
  ["an element", '{"l": [{"a": {"length": 1, "length": 2}}]}'],
  ["the document", '{"l": [1], "l": [2]}'],
  ["what nobody asked for", '{"c": {"x": [{"y": 1, "y": 1}]}}'],
  ["__proto__", '{"v": {"__proto__": 1, "__proto__": 2}}'],
])("a key twice in %s", (_, text) => {
  expect(() => read(Buffer.from(text))).toThrow("twice");
});

test.each([
  "",
  "[]",
  "1",
  "null",
  '"a"',
  "{",
  "{}{}",
  "{} 1",
  "{} t",
  "{,}",
  '{"a"}',
  '{"a":}',
  '{"a":1,}',
  '{"a":[1,]}',
  '{"a":[,1]}',
  '{"a" 1}',
  '{"a":1 "b":2}',
  "{1:2}",
  '{"a":[}',
  '{"a":{]}',
  '{"a":01}',
  '{"a":"\t"}',
  '{"a":NaN}',
  '{"l":{}}',
  '{"l":3}',
])("%j is not read", (text) => {
  expect(() => read(Buffer.from(text))).toThrow(UnusableJsonError);
});

test("whitespace around a document is allowed, and bytes that are no text are not", () => {
  expect(parseStrictJson(' \n{"a": {"__proto__": 1}}\n\n')).toEqual(JSON.parse('{"a": {"__proto__": 1}}'));
  expect(() => parseStrictJson(Buffer.from('{"a": "\xff"}', "latin1"))).toThrow(UnusableJsonError);
});

/** Heap bytes that a refusal used, at most; garbage collection can only lower the figure. */
function heapUsed(work: () => void): number {
  const before = process.memoryUsage().heapUsed;
  work();
  return process.memoryUsage().heapUsed - before;
}

const megabyte = 1000 * 1000;

test.each([
  ["nested lists", "[".repeat(0.9 * megabyte)],
  ["nested objects", '{"a":'.repeat((0.9 * megabyte) / 5)],
  ["a wide list", `[${"1,".repeat(0.45 * megabyte)}1]`],
  ["a list of empty lists", `[${"[],".repeat(0.3 * megabyte)}[]]`],
  ["a wide object", `{${Array.from({ length: 100_000 }, (_, at) => `"${at}":1`).join()}}`],
])("900 KB of %s are refused within the memory of what is allowed", (_, inner) => {
  for (const key of ["v", "c", "l"]) {
    const text = Buffer.from(`{"${key}": [${inner}]}`);
    const used = heapUsed(() => expect(() => read(text)).toThrow(UnusableJsonError));
    expect(used).toBeLessThan(64 * megabyte);
  }
});

test("the limits themselves are allowed", () => {
  const deep = `{"a": ${"[".repeat(jsonDepthMax - 1)}${"]".repeat(jsonDepthMax - 1)}}`;
  expect(() => parseStrictJson(deep)).not.toThrow();
  expect(() => parseStrictJson(deep.replace("[]", "[[]]"))).toThrow("deeper");
  const wide = Array.from({ length: jsonValuesMax - 1 }, () => 1);
  expect(() => parseStrictJson(JSON.stringify({ a: wide }))).not.toThrow();
  expect(() => parseStrictJson(JSON.stringify({ a: [...wide, 1] }))).toThrow("more than");
});
