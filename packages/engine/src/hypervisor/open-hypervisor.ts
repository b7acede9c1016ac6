import { HypervisorRefusedError } from "../errors.ts";
import type { Hypervisor, PowerState } from "./hypervisor.ts";
import { RecordHypervisor } from "./record.ts";

/** Which driver, and what its record says. */
export type HypervisorSettings =
  | { driver: "record"; powerState: PowerState }
  | {
      driver: "qmp";
      /** The QMP socket of a running QEMU or qemu-storage-daemon: an absolute path. */
      socket: string;
      /** The socket of the guest agent, if there is one. */
      agentSocket: string | null;
      /** The file systems to freeze, by their mount points in the guest; null for all of them. */
      freezeMountpoints: readonly string[] | null;
      /** Folders in which sockets may lie. */
      socketRoots: readonly string[];
    };

/** Nothing is connected yet: a machine that is off can be opened too. */
export function openHypervisor(settings: HypervisorSettings): Hypervisor {
  switch (settings.driver) {
    case "record":
      return new RecordHypervisor(settings.powerState);
    case "qmp":
      throw new HypervisorRefusedError("The driver qmp is not built in.");
  }
}
