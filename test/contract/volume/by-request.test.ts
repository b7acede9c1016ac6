import { MemoryVolumes } from "./memory-volumes.ts";
import { describeVolumeBackend } from "./volume-contract.ts";

describeVolumeBackend({
  name: "read by request and written in place",
  restores: "in-place",
  open: async () => {
    const volumes = new Map<string, Buffer>();
    return {
      backend: new MemoryVolumes(volumes),
      again: async () => new MemoryVolumes(volumes),
      write: async (id, bytes, offset) => new MemoryVolumes(volumes).write(id, bytes, offset),
      [Symbol.asyncDispose]: async () => {},
    };
  },
});
