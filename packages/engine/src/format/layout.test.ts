import { expect, test } from "vitest";
import { InvalidLayoutError, InvalidObjectNameError } from "../errors.ts";
import { type BackupLayout, checkLayout, checkPrefix, dataName, dataNumber, numbersOfRange } from "./layout.ts";

const prefix = "volume_d3d5c51a-1656-4716-883f-07d77b790767_20261120172141_backup_106b30de-63b9-4246-aa20-96a6e83a9414";
const layout: BackupLayout = {
  backupId: "b",
  volumeId: "v",
  container: "c",
  prefix,
  compression: "zlib",
  level: 6,
  objectBytes: 10 * 4096,
  blockBytes: 4096,
  volumeBytes: 1_000_000,
  createdAt: "",
  name: null,
  description: null,
  volumeMeta: null,
  parentId: null,
};

test("a data object's name has at least five digits, and only such names are its own", () => {
  expect(dataName(prefix, 7)).toBe(`${prefix}-00007`);
  for (const number of [1, 99_999, 100_000, 335_545]) expect(dataNumber(prefix, dataName(prefix, number))).toBe(number);
  for (const rest of [
    "-1",
    "-0001",
    "-000001",
    "-00001x",
    "-",
    "_metadata",
    "",
    ".00001",
    "-00001\n",
    "-1e5",
    "-0x001",
  ]) {
    expect(dataNumber(prefix, prefix + rest)).toBeNull();
  }
});

test("numbers follow from the position alone", () => {
  const range = { offset: 3 * layout.objectBytes, length: 2 * layout.objectBytes };
  expect(numbersOfRange(layout, range)).toEqual({ from: 3, to: 5 });
  expect(numbersOfRange({ ...layout, parentId: "p" }, range)).toEqual({ from: 15, to: 25 });
});

test("only a whole prefix is one: anything shorter would reach other backups", () => {
  expect(checkPrefix(prefix)).toBe(prefix);
  expect(checkPrefix("volume_a-b/20261120172141/az_nova.1_backup_c-d")).toBeTruthy();
  for (const wrong of ["", "volume_", prefix.slice(0, -37), `${prefix}/x`, `${prefix}_metadata`, "a", `../${prefix}`]) {
    expect(() => checkPrefix(wrong)).toThrow(InvalidObjectNameError);
  }
});

test.each<Partial<BackupLayout>>([
  { blockBytes: 0 },
  { blockBytes: 100 },
  { objectBytes: 4097 },
  { objectBytes: 2048 },
  { objectBytes: 2 ** 40 },
  { volumeBytes: -1 },
  { volumeBytes: 1.5 },
  { level: 10 },
  { zlibEncoder: "isal" },
  { zlibEncoder: "isal", level: 2, compression: "zstd" },
  { zlibEncoder: "isal", level: 2, compression: "off" },
])("the layout with %o is refused", (wrong) => {
  expect(() => checkLayout({ ...layout, ...wrong })).toThrow(InvalidLayoutError);
  expect(() => checkLayout(layout)).not.toThrow();
  expect(() => checkLayout({ ...layout, compression: "gzip", zlibEncoder: "isal", level: 3 })).not.toThrow();
});
