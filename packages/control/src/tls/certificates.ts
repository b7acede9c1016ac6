import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname, networkInterfaces } from "node:os";
import { join, resolve } from "node:path";
import type { Logger } from "pino";
import type { Config } from "../config.ts";
import { type KeyedCertificate, openAuthority } from "./authority.ts";

/** How often the operator's files are read, and the age of our own certificate is looked at. */
const lookMs = 60_000;
const dayMs = 86_400_000;

/** The certificate of a server, which changes while it runs. */
export interface Certificates extends Disposable {
  /** The newest. */
  readonly current: KeyedCertificate;
  /** PEM of the certificate that signs it, for clients to trust; null: the operator has not given it. */
  readonly authority: string | null;
  /** Called with every later one. */
  onChange(use: (certificate: KeyedCertificate) => void): void;
}

type Found = KeyedCertificate & { authority: string | null };

/** @throws Error where the files cannot be read or do not belong together */
function readOperators(certificate: string, privateKey: string, ca: string | null): Found {
  const [cert, key] = [readFileSync(certificate, "utf8"), readFileSync(privateKey, "utf8")];
  if (!new X509Certificate(cert).checkPrivateKey(createPrivateKey(key))) {
    throw new Error(`${privateKey} is not the key of the certificate in ${certificate}`);
  }
  return { cert, key, authority: ca === null ? null : new X509Certificate(readFileSync(ca)).toString() };
}

const isEverywhere = (host: string): boolean => host === "0.0.0.0" || host === "::";

/** What clients may call the server: where it listens, what links in answers name, and what is configured. */
function namesOf(config: Config, hosts: readonly string[]): string[] {
  const { tls, public_endpoint: endpoint, allowed_hosts: allowed } = config;
  const all = [...hosts, tls.host ?? config.host];
  const addresses = all.some(isEverywhere)
    ? Object.values(networkInterfaces()).flatMap((found) => (found ?? []).map(({ address }) => address))
    : [];
  const linked = endpoint === null ? [] : [new URL(endpoint).hostname.replace(/^\[|\]$/g, "")];
  const known = [hostname().toLowerCase(), config.hostName.toLowerCase(), "localhost", "127.0.0.1", "::1"];
  const names = [
    ...tls.names,
    ...linked,
    ...allowed,
    ...known,
    ...all.filter((host) => !isEverywhere(host)),
    ...addresses,
  ];
  return [...new Set(names)].filter((name) => !name.includes("%"));
}

/**
 * The operator's certificate, read again when its files have changed, or one of our own authority, replaced after two thirds of its time.
 * One that cannot be had leaves the last one in use, and is logged.
 *
 * @param hosts names and addresses of the server, beside those of the API
 * @throws Error where there is none to begin with
 */
export async function openCertificates(
  config: Config,
  log: Logger,
  hosts: readonly string[] = [],
): Promise<Certificates> {
  const { tls } = config;
  const { certificate_file: file, private_key_file: keyFile, ca_file: ca } = tls;
  const own = async (): Promise<Found> => {
    const authority = await openAuthority(resolve(tls.ca_dir ?? join(config.data_dir, "tls")));
    return { ...(await authority.issue(namesOf(config, hosts), tls.certificate_days)), authority: authority.cert };
  };
  const find = async (): Promise<Found> => (file && keyFile ? readOperators(file, keyFile, ca) : own());
  let found = await find();
  const users: ((certificate: KeyedCertificate) => void)[] = [];
  const isDue = (): boolean => {
    if (file !== null) return true;
    return new X509Certificate(found.cert).validToDate.getTime() - Date.now() < (tls.certificate_days * dayMs) / 3;
  };
  const look = async (): Promise<void> => {
    if (!isDue()) return;
    const next = await find();
    const isNew = next.cert !== found.cert || next.key !== found.key;
    found = next;
    if (!isNew) return;
    for (const use of users) use(found);
    log.info({ event: "certificate.changed", until: new X509Certificate(found.cert).validToDate }, "a new certificate");
  };
  const timer = setInterval(
    () => void look().catch((error: Error) => log.warn({ reason: error.message }, "the certificate cannot be renewed")),
    Math.min(lookMs, (tls.certificate_days * dayMs) / 20),
  );
  timer.unref();
  return {
    get current() {
      return { cert: found.cert, key: found.key };
    },
    get authority() {
      return found.authority;
    },
    onChange: (use) => void users.push(use),
    [Symbol.dispose]: () => clearInterval(timer),
  };
}
