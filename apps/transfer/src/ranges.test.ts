import { describe, expect, it } from "vitest";
import { BadRequestError, flushOf, lengthOf, OutsideImageError, patchOf, rangeOf, startOf } from "./ranges.ts";

const MiB = 1024 * 1024;

describe("Range", () => {
  it.each([
    ["bytes=0-9", { offset: 0, length: 10 }],
    ["bytes=1048575-1048575", { offset: MiB - 1, length: 1 }],
    ["bytes=5-", { offset: 5, length: MiB - 5 }],
    [undefined, null],
  ])("%s", (header, extent) => expect(rangeOf(header, MiB)).toEqual(extent));

  it.each([
    "bytes=1048570-1048579",
    "bytes=1048576-1048576",
    "bytes=1048576-",
    "bytes=-5",
    "bytes=0-1,4-5",
    "bytes=9-3",
    "bytes=18446744073709551615-18446744073709551616",
    "bytes=0-99999999999999999999999",
  ])("%s is outside", (header) => expect(() => rangeOf(header, MiB)).toThrow(OutsideImageError));

  it("of other units is not understood", () => expect(() => rangeOf("pages=1-2", MiB)).toThrow(BadRequestError));
});

it.each([
  ["bytes 65536-131071/*", 65_536],
  ["bytes 7-9/100", 7],
  ["bytes 7-*/*", 7],
  [undefined, 0],
])("a Content-Range %s begins at %d", (header, start) => expect(startOf(header)).toBe(start));

it.each(["bytes */*", "bytes -1-5/*", "0-9", "bytes 0x10-20/*", "bytes 9-3/*", "bytes 0-9/9"])(
  "a Content-Range %s is not understood",
  (header) => expect(() => startOf(header)).toThrow(BadRequestError),
);

it.each([undefined, "", "-1", "1e3", "99999999999999999999"])("a body's length cannot be %s", (header) =>
  expect(() => lengthOf(header)).toThrow(BadRequestError),
);

it("says what flush may be", () => {
  expect(flushOf(new URLSearchParams("flush=n"), true)).toBe(false);
  expect(() => flushOf(new URLSearchParams("flush=maybe"), true)).toThrow(
    "Unsupported value 'maybe' for 'flush', expecting one of ['n', 'y']",
  );
});

describe("PATCH", () => {
  it.each([
    ['{"op": "flush"}', { op: "flush" }],
    ['{"op": "zero", "size": 5}', { op: "zero", range: { offset: 0, length: 5 }, flush: false }],
    [
      '{"op": "zero", "offset": 1, "size": 5, "flush": true}',
      { op: "zero", range: { offset: 1, length: 5 }, flush: true },
    ],
  ])("%s", (body, patch) => expect(patchOf(body, MiB)).toEqual(patch));

  it.each([
    ['{"op": "zero"}', "Missing required value for 'size'"],
    ['{"op": "zero", "size": -1}', "Invalid value for 'size': -1"],
    ['{"op": "zero", "size": "1"}', "Invalid value for 'size': \"1\""],
    ['{"op": "trim", "size": 1}', "Unsupported value 'trim' for 'op', expecting one of ['flush', 'zero']"],
    ["{}", "Missing required value for 'op'"],
    ["nothing", "Invalid JSON message"],
    ["[]", "Invalid JSON message: expected an object"],
  ])("%s is refused", (body, message) => expect(() => patchOf(body, MiB)).toThrow(message));

  it.each(['{"op": "zero", "offset": 1048570, "size": 10}', '{"op": "zero", "offset": 9007199254740991, "size": 2}'])(
    "%s is outside",
    (body) => expect(() => patchOf(body, MiB)).toThrow(OutsideImageError),
  );
});
