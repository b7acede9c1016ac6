import { createRequire } from "node:module";
import { endianness } from "node:os";
import { CodecUnavailableError } from "../errors.ts";

/** A library function. Addresses are passed as numbers, so that nothing is copied. */
export type NativeCall = ((...args: (bigint | number)[]) => number) & {
  async: (...args: (bigint | number | ((error: Error | null, status: number) => void))[]) => void;
};

export interface SystemLibrary<Name extends string> {
  /** The address of the bytes. They must stay referenced while the library uses them. */
  address(bytes: Uint8Array): bigint;
  calls: Record<Name, NativeCall>;
}

/** Processors whose C struct layouts agree: 64 bits, little-endian. */
const processors = ["x64", "arm64", "riscv64", "loong64"];

/**
 * Opens a system library for a codec. `prototypes`: name → C prototype, with `uint64` for every pointer. Throws CodecUnavailableError
 * when the library or one of its functions is missing.
 */
export function openSystemLibrary<Name extends string>(
  codec: string,
  file: string,
  prototypes: Readonly<Record<Name, string>>,
): SystemLibrary<Name> {
  try {
    if (endianness() !== "LE" || !processors.includes(process.arch)) {
      throw new Error(`the layout of its state is not known on ${process.arch}`);
    }
    const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
    const native = koffi.load(file);
    const calls = Object.entries<string>(prototypes).map(([name, prototype]) => [name, native.func(prototype)]);
    return {
      address: (bytes) => BigInt(koffi.address(bytes)),
      calls: Object.fromEntries(calls) as Record<Name, NativeCall>,
    };
  } catch (cause) {
    const reason = `the library ${file} cannot be used: ${(cause as Error).message}`;
    throw new CodecUnavailableError(codec, reason, { cause });
  }
}
