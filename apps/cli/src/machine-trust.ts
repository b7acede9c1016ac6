import { getCACertificates, setDefaultCACertificates } from "node:tls";

/**
 * From now on, server certificates are also accepted from CAs that this machine trusts, beside those built into Node. Takes some hundred
 * milliseconds: call it just before using TLS. Services get `--use-system-ca` from their launchers; the command lines run on whatever
 * Node is installed, which may not know the option.
 */
export function trustMachine(): void {
  setDefaultCACertificates([...new Set([...getCACertificates("default"), ...getCACertificates("system")])]);
}
