import { Agent } from "node:https";
import type { Duplex } from "node:stream";

/** Certificates are requested for each connection, so that renewed ones take effect without a restart. */
export class RenewingAgent extends Agent {
  readonly #ca: (() => Promise<string>) | null;

  constructor({
    ca,
    insecure,
    socketsMax,
  }: { ca: (() => Promise<string>) | null; insecure: boolean; socketsMax: number }) {
    super({ keepAlive: true, maxSockets: socketsMax, ...(insecure ? { rejectUnauthorized: false } : {}) });
    this.#ca = ca;
  }

  override createConnection(...args: Parameters<Agent["createConnection"]>): ReturnType<Agent["createConnection"]> {
    const [options, callback] = args;
    if (this.#ca === null || callback === undefined) return super.createConnection(...args);
    const connect = (ca: string): void => {
      const socket = super.createConnection({ ...options, ca } as typeof options);
      callback(null, socket as Duplex);
    };
    this.#ca()
      .then(connect)
      .catch((error: Error) => callback(error, undefined as unknown as Duplex));
    return undefined;
  }
}
