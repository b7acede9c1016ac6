import { getCACertificates, setDefaultCACertificates } from "node:tls";

/**
 * From here on, servers may also show a certificate of an authority that this machine trusts, beside those that Node brings along. Takes some
 * hundred milliseconds: to be called where TLS is about to be spoken. Services have `--use-system-ca` from their launchers; the command lines
 * run on whatever Node is there, which may not know the option.
 */
export function trustMachine(): void {
  setDefaultCACertificates([...new Set([...getCACertificates("default"), ...getCACertificates("system")])]);
}
