import type { Hypervisor, PowerState } from "./hypervisor.ts";
import { QmpHypervisor, type QmpSettings } from "./qmp.ts";
import { RecordHypervisor } from "./record.ts";

/** Which driver, and what its record says. */
export type HypervisorSettings = { driver: "record"; powerState: PowerState } | ({ driver: "qmp" } & QmpSettings);

/** Nothing is connected yet: a machine that is off can be opened too. */
export function openHypervisor(settings: HypervisorSettings): Hypervisor {
  switch (settings.driver) {
    case "record":
      return new RecordHypervisor(settings.powerState);
    case "qmp":
      return new QmpHypervisor(settings);
  }
}
