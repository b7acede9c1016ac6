import { setTimeout as sleep } from "node:timers/promises";
import { InvalidError } from "@tephra/control";
import { documents, finishFreeze, noteFrozen, readFreeze } from "@tephra/control/work";
import { EngineError, freezeGuest, type GuestSettings, thawGuest } from "@tephra/engine";
import { type Handler, resultOf } from "../context.ts";

/** While a guest is frozen: how often it is looked whether it is to be thawed. */
const lookEveryMs = 200;

/** Whoever asks waits, and can ask again: what the agent refuses is not tried a second time. */
const orInvalid = async (act: () => Promise<void>): Promise<void> => {
  await act().catch((error: unknown) => {
    if (!(error instanceof EngineError)) throw error;
    throw new InvalidError("request", error.message);
  });
};

/** Freezes a guest until it is to be thawed, and thaws it. Where an earlier claim has frozen it, its worker is gone: it is thawed at once. */
export const freezeTask: Handler = async (task, { config, database }, run) => {
  const { operation } = task;
  const { instanceId, freeze } = documents.freezing(operation.input);
  const key = { projectId: operation.projectId, id: instanceId };
  const instance = await database.instance.findUniqueOrThrow({ where: { projectId_id: key } });
  const guest: GuestSettings = {
    agentSocket: instance.agentSocket,
    freezeMountpoints: instance.freezeMountpoints as string[] | null,
    socketRoots: config.instances.qmp_socket_roots,
  };
  const { freeze_limit_ms: freezeMs, manual_freeze_limit_ms: limitMs } = config.instance_groups;
  if (!freeze || operation.plan !== null) {
    await orInvalid(() => thawGuest(guest));
    return finishFreeze(database, operation, resultOf(task));
  }
  const until = performance.now() + limitMs;
  await orInvalid(() => freezeGuest(guest, Math.min(freezeMs, limitMs)));
  try {
    await noteFrozen(database, operation.id);
    while (performance.now() < until && (await readFreeze(database, operation.id)) === "frozen") {
      run.onProgress({ bytesDone: 0, bytesStored: 0 });
      await sleep(Math.min(lookEveryMs, Math.max(0, until - performance.now())), undefined, { signal: run.signal });
    }
  } finally {
    await orInvalid(() => thawGuest(guest));
  }
  await finishFreeze(database, operation, resultOf(task));
};
