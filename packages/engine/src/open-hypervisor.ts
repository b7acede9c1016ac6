import type { Hypervisor, PowerState } from "./hypervisor/hypervisor.ts";
import { QmpHypervisor } from "./hypervisor/qmp/qmp.ts";
import { RecordHypervisor } from "./hypervisor/record.ts";

/** The driver, and what is recorded of the machine; each driver uses the fields it needs. */
export interface HypervisorSettings {
  driver: "record" | "qmp";
  powerState: PowerState;
  /** The monitor's socket. */
  socket?: string | null;
  /** The guest agent's, where there is one. */
  agentSocket?: string | null;
  /** File systems that the agent freezes, by mount points in the guest; null: all. */
  freezeMountpoints?: string[] | null;
  /** Sockets must be beneath one of these folders. */
  socketRoots?: readonly string[];
}

/** Does not connect yet: a machine that is off can be opened too. */
export function openHypervisor(settings: HypervisorSettings): Hypervisor {
  const { driver, powerState, socket, agentSocket, freezeMountpoints, socketRoots } = settings;
  switch (driver) {
    case "record":
      return new RecordHypervisor(powerState);
    case "qmp":
      return new QmpHypervisor({
        socket: socket ?? "",
        agentSocket: agentSocket ?? null,
        freezeMountpoints: freezeMountpoints ?? null,
        socketRoots: socketRoots ?? [],
        powerState,
      });
    default:
      return driver satisfies never;
  }
}
