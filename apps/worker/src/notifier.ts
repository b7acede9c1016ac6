import { createHmac } from "node:crypto";
import type { Config, Database, Logger } from "@tephra/control";
import { type Election, redisConnection, redisOptions } from "@tephra/control/process";
import {
  type DueDelivery,
  markDelivered,
  markUndelivered,
  spreadNotifications,
  takeDeliveries,
  targetsOf,
} from "@tephra/control/work";
import { type HttpClient, openHttpClient } from "@tephra/openstack";
import { Redis } from "ioredis";

/** Maximum number of concurrent deliveries of one process. */
const batch = 32;

type Webhook = Config["notifications"]["webhooks"][number];

export interface Notifier {
  /** Settles when no delivery is under way any more. */
  stop(): Promise<void>;
}

/** A notification as sent to its targets: the envelope of oslo.messaging. */
function envelopeOf(delivery: DueDelivery): string {
  return JSON.stringify({
    message_id: delivery.messageId,
    publisher_id: `backup.${delivery.host}`,
    event_type: delivery.eventType,
    priority: "INFO",
    payload: delivery.payload,
    timestamp: `${delivery.createdAt.toISOString().slice(0, -1).replace("T", " ")}000`,
  });
}

/**
 * One POST. `X-Tephra-Signature` is the HMAC-SHA256 of the time and the body with the webhook's secret, so that a receiver can verify the
 * sender and detect a replay.
 *
 * @throws when the response is anything but 2xx, or none arrives in time
 */
async function post(
  { client, ...webhook }: Webhook & { client: HttpClient },
  delivery: DueDelivery,
  timeoutMs: number,
): Promise<void> {
  const body = envelopeOf(delivery);
  const time = String(Math.floor(Date.now() / 1000));
  const signature = createHmac("sha256", webhook.secret).update(`${time}.${body}`).digest("hex");
  const response = await client.ask(webhook.url, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "x-tephra-event": delivery.eventType,
      "x-tephra-delivery": delivery.messageId,
      "x-tephra-timestamp": time,
      "x-tephra-signature": `sha256=${signature}`,
    },
    body,
    // What was signed for one URL is not sent to another.
    redirect: "manual",
    signal: AbortSignal.timeout(timeoutMs),
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`answered ${response.status}`);
}

/** fetch says only "fetch failed"; what happened is in its cause. */
const reasonOf = (error: unknown): string => {
  const { cause, message } = error as Error;
  return cause instanceof Error && cause.message !== "" ? cause.message : message;
};

/**
 * Delivers the outbox to its targets, in the one process that is elected; two side by side do no harm. A target that does not accept a
 * notification gets it again later, until the delivery is dead.
 */
export function startNotifier(options: {
  database: Database;
  config: Config;
  log: Logger;
  election: Election;
}): Notifier {
  const { database, config, log, election } = options;
  const settings = config.notifications;
  const webhooks = settings.webhooks.map((webhook) => ({ ...webhook, client: openHttpClient(webhook.ca) }));
  const targets = targetsOf(config);
  const stream = settings.redis_stream;
  const redis = stream
    ? new Redis({
        ...redisOptions,
        ...redisConnection(config.redis_url),
        lazyConnect: true,
        maxRetriesPerRequest: 1,
        commandTimeout: settings.timeout_ms,
      })
    : null;
  redis?.on("error", (error: Error) => log.debug({ err: error }, "redis connection"));

  const send = async (delivery: DueDelivery): Promise<void> => {
    if (delivery.target === "log") {
      log.info({ event: "notification", notification: JSON.parse(envelopeOf(delivery)) }, delivery.eventType);
      return;
    }
    if (delivery.target === "redis" && redis && stream) {
      const entry = ["event_type", delivery.eventType, "message", envelopeOf(delivery)];
      await redis.xadd(stream, "MAXLEN", "~", settings.redis_stream_entries_max, "*", ...entry);
      return;
    }
    const webhook = webhooks.find((w) => delivery.target === `webhook:${w.name}`);
    if (!webhook) throw new Error("the target is no longer configured");
    await post(webhook, delivery, settings.timeout_ms);
  };

  const deliver = async (delivery: DueDelivery): Promise<void> => {
    try {
      await send(delivery);
      await markDelivered(database, delivery.id);
    } catch (error) {
      const reason = reasonOf(error);
      const dead = delivery.attempts >= settings.attempts_max;
      const about = { target: delivery.target, notification: delivery.messageId, attempts: delivery.attempts, reason };
      log.warn({ event: dead ? "notification.dead" : "notification.undelivered", ...about }, "not delivered");
      const delayMs = Math.min(settings.backoff_ms_max, settings.backoff_ms * 2 ** (delivery.attempts - 1));
      await markUndelivered(database, delivery.id, { reason, dead, delayMs });
    }
  };

  let stopped = false;
  /** A delivery whose outcome cannot be recorded does not block the others: its lease expires. */
  const deliverOne = (delivery: DueDelivery): Promise<void> =>
    deliver(delivery).catch((error: unknown) => {
      log.warn({ err: error, delivery: delivery.id }, "how a delivery went could not be stored");
    });

  const pass = async (): Promise<void> => {
    if (!election.holds("notifier")) return;
    await spreadNotifications(database, targets);
    // Whoever takes a delivery holds it exclusively until its attempt must have ended.
    const lease = { limit: batch, leaseMs: settings.timeout_ms * 2, attemptsMax: settings.attempts_max };
    for (let taken = batch; taken === batch && !stopped; ) {
      const due = targets.length === 0 ? [] : await takeDeliveries(database, lease);
      await Promise.all(due.map(deliverOne));
      taken = due.length;
    }
  };

  let timer: NodeJS.Timeout | undefined;
  let running: Promise<void> = Promise.resolve();
  const next = (): void => {
    if (stopped) return;
    timer = setTimeout(() => {
      running = pass()
        .catch((error: unknown) => log.warn({ err: error }, "notifications wait for the database"))
        .then(next);
    }, settings.poll_ms);
  };
  next();
  return {
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await running;
      redis?.disconnect();
    },
  };
}
