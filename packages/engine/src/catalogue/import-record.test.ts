import { expect, test } from "vitest";
import { InvalidRecordError } from "../errors.ts";
import { decodeExportRecord } from "./import-record.ts";

const whole = "volume_a-b_20261120172141_backup_c-d";
const record = {
  id: "3f1ad3e8-0000-4000-8000-000000000001",
  display_name: null,
  display_description: null,
  container: "ab/cd",
  size: 1,
  object_count: 1,
  service_metadata: whole,
};
const encode = (change: object): string => Buffer.from(JSON.stringify({ ...record, ...change })).toString("base64");

test("a record is refused that names anything but a whole prefix: a shorter one would reach other backups' objects", () => {
  expect(decodeExportRecord(encode({})).prefix).toBe(whole);
  for (const prefix of ["", "volume_", whole.slice(0, -4), `${whole}_metadata`, `../${whole}`, `${whole}/../x`, "x"]) {
    expect(() => decodeExportRecord(encode({ service_metadata: prefix })), prefix).toThrow(InvalidRecordError);
  }
});
