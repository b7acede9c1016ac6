import { HypervisorRefusedError, HypervisorUnavailableError } from "../../errors.ts";
import { freeze, thaw } from "./freeze-while.ts";
import { GuestAgent } from "./guest-agent.ts";

/*
 * A guest that is frozen until somebody thaws it. Between the two nobody is connected to its agent: whoever freezes must see to it that it is
 * thawed, whatever becomes of him.
 */

/** How the guest agent of a machine is reached. */
export interface GuestSettings {
  agentSocket?: string | null;
  /** The file systems to freeze, by their mount points in the guest; null for all of them. */
  freezeMountpoints?: readonly string[] | null;
  /** Sockets must be beneath one of these folders. */
  socketRoots?: readonly string[];
}

async function connect({ agentSocket, socketRoots = [] }: GuestSettings): Promise<GuestAgent> {
  const agent = agentSocket == null ? null : await GuestAgent.connect(agentSocket, socketRoots);
  if (agent === null) throw new HypervisorUnavailableError("No guest agent answers.");
  return agent;
}

/**
 * Freezes the guest's file systems. An agent that has not answered within `limitMs` is asked to thaw.
 *
 * @throws HypervisorUnavailableError without an agent that answers; HypervisorRefusedError when it did not freeze: it is thawed then
 */
export async function freezeGuest(settings: GuestSettings, limitMs: number): Promise<void> {
  using agent = await connect(settings);
  const refusal = await freeze(agent, settings.freezeMountpoints ?? null, limitMs);
  if (refusal === null) return;
  await thaw(agent);
  throw new HypervisorRefusedError(`The guest was not frozen: ${refusal}.`);
}

/** Thaws the guest, and makes sure that it is. @throws HypervisorUnavailableError */
export async function thawGuest(settings: GuestSettings): Promise<void> {
  using agent = await connect(settings);
  await thaw(agent);
}
