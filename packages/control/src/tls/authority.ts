import { createPrivateKey, createPublicKey, type KeyObject, randomUUID, webcrypto, X509Certificate } from "node:crypto";
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { makeOnce } from "../make-once.ts";

/*
 * An authority of our own: a key and a certificate in one folder, of which the key is readable by its owner alone. Processes that share the
 * folder are of one authority; it is in files and not in PostgreSQL because whoever reads a dump or a replica of the database could else
 * stand for the service. What it issues lives in the memory of the process that asked, so that no other private key is anywhere.
 */

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const dayMs = 86_400_000;
const authorityDays = 3_650;
/** A new certificate of the same key is made when the old one has less left: what clients have stored of it stays right until its end. */
const authorityRenewDays = 730;
/** Certificates begin a little in the past: clocks differ. */
const skewMs = 3_600_000;

export interface KeyedCertificate {
  /** PEM, with the chain. */
  cert: string;
  /** PEM. */
  key: string;
}

export interface Authority {
  /** PEM of the authority's certificate. */
  readonly cert: string;
  /** A new key, and a certificate of it for these host names and addresses. */
  issue(names: readonly string[], days: number): Promise<KeyedCertificate>;
}

/** Loaded only where certificates are made: it takes a while, and few programs do. */
async function x509() {
  await import("reflect-metadata");
  return import("@peculiar/x509");
}

const importKey = (key: KeyObject): Promise<webcrypto.CryptoKey> =>
  webcrypto.subtle.importKey("pkcs8", key.export({ format: "der", type: "pkcs8" }), algorithm, true, ["sign"]);

/** 127 random bits: positive, and never twice. */
const serialNumber = (): string => `1${randomUUID().replaceAll("-", "").slice(1)}`;

const validity = (days: number) => ({
  notBefore: new Date(Date.now() - skewMs),
  notAfter: new Date(Date.now() + days * dayMs),
});

async function certificateOf(key: KeyObject): Promise<string> {
  const lib = await x509();
  const spki = createPublicKey(key).export({ format: "der", type: "spki" });
  const publicKey = await webcrypto.subtle.importKey("spki", spki, algorithm, true, ["verify"]);
  const flags = lib.KeyUsageFlags.keyCertSign | lib.KeyUsageFlags.cRLSign;
  const made = await lib.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    // The name stays as it is: certificates name their issuer by it.
    name: [{ O: ["Tephra"] }, { CN: ["Tephra's own authority"] }],
    ...validity(authorityDays),
    keys: { publicKey, privateKey: await importKey(key) },
    signingAlgorithm: algorithm,
    extensions: [
      new lib.BasicConstraintsExtension(true, 0, true),
      new lib.KeyUsagesExtension(flags, true),
      await lib.SubjectKeyIdentifierExtension.create(publicKey),
    ],
  });
  return `${made.toString("pem")}\n`;
}

async function issue(
  authority: { key: KeyObject; cert: string },
  names: readonly string[],
  days: number,
): Promise<KeyedCertificate> {
  const lib = await x509();
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const issuer = new lib.X509Certificate(authority.cert);
  const made = await lib.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: [{ O: ["Tephra"] }, { CN: [names[0]?.slice(0, 64) ?? "localhost"] }],
    issuer: issuer.subjectName,
    ...validity(days),
    publicKey: keys.publicKey,
    signingKey: await importKey(authority.key),
    signingAlgorithm: algorithm,
    extensions: [
      new lib.BasicConstraintsExtension(false, undefined, true),
      new lib.KeyUsagesExtension(lib.KeyUsageFlags.digitalSignature, true),
      new lib.ExtendedKeyUsageExtension([lib.ExtendedKeyUsage.serverAuth]),
      new lib.SubjectAlternativeNameExtension(
        names.map((value) => ({ type: isIP(value) === 0 ? ("dns" as const) : ("ip" as const), value })),
      ),
      await lib.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
      await lib.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const key = Buffer.from(await webcrypto.subtle.exportKey("pkcs8", keys.privateKey));
  const pem = createPrivateKey({ key, format: "der", type: "pkcs8" }).export({ format: "pem", type: "pkcs8" });
  return { cert: `${made.toString("pem")}\n${authority.cert}`, key: String(pem) };
}

function readKey(path: string): KeyObject {
  if ((statSync(path).mode & 0o077) !== 0) throw new Error(`${path} may be read by others than its owner: chmod 600`);
  return createPrivateKey(readFileSync(path));
}

async function newKey(): Promise<string> {
  const { privateKey } = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const der = Buffer.from(await webcrypto.subtle.exportKey("pkcs8", privateKey));
  return String(createPrivateKey({ key: der, format: "der", type: "pkcs8" }).export({ format: "pem", type: "pkcs8" }));
}

/** The certificate in the file, or a new one of the same key where that one ends soon. */
async function currentCertificate(path: string, key: KeyObject): Promise<string> {
  const cert = readFileSync(path, "utf8");
  const read = new X509Certificate(cert);
  if (!read.checkPrivateKey(key)) throw new Error(`${path} is not the certificate of the key beside it`);
  if (read.validToDate.getTime() - Date.now() > authorityRenewDays * dayMs) return cert;
  const draft = `${path}.${randomUUID()}`;
  const renewed = await certificateOf(key);
  writeFileSync(draft, renewed, { mode: 0o600, flag: "wx" });
  renameSync(draft, path);
  return renewed;
}

/**
 * The authority in a folder: made at first use, the same for all processes that begin at once.
 *
 * @throws Error for a key that others may read, that is missing, or that is not the certificate's
 */
export async function openAuthority(dir: string): Promise<Authority> {
  const [keyPath, certPath] = [join(dir, "ca.key"), join(dir, "ca.pem")];
  // The key comes first: where there is a certificate, its key has been there.
  if (existsSync(certPath) && !existsSync(keyPath)) throw new Error(`${keyPath} is missing beside its certificate`);
  if (!existsSync(keyPath)) makeOnce(keyPath, await newKey());
  const key = readKey(keyPath);
  if (!existsSync(certPath)) makeOnce(certPath, await certificateOf(key));
  const cert = await currentCertificate(certPath, key);
  return { cert, issue: (names, days) => issue({ key, cert }, names, days) };
}
