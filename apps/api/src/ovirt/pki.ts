import { type KeyObject, X509Certificate } from "node:crypto";
import { type RequestHandler, Router } from "express";
import type { Context } from "../context.ts";
import { OvirtFault } from "./faults.ts";

/** Certificates are public: whoever is to trust them asks for them before he can log in. */
const resources = ["ca-certificate", "engine-certificate"] as const;
type Resource = (typeof resources)[number];

const pem = (certificate: X509Certificate): string => certificate.toString();

const lengthPrefixed = (bytes: Buffer): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
};

/** A positive number of any length, as RFC 4251 writes it. */
const mpint = (bytes: Buffer): Buffer =>
  lengthPrefixed((bytes[0] ?? 0) > 0x7f ? Buffer.concat([Buffer.alloc(1), bytes]) : bytes);

const curves: Readonly<Record<string, string>> = { "P-256": "nistp256", "P-384": "nistp384", "P-521": "nistp521" };

/** A public key on one line, as OpenSSH writes it (RFC 4253, 5656). @throws OvirtFault 400 for a kind of key that it does not have */
function sshLine(key: KeyObject, alias: string): string {
  const jwk = key.export({ format: "jwk" });
  const bytes = (text: string | undefined): Buffer => Buffer.from(text ?? "", "base64url");
  const line = (type: string, ...parts: Buffer[]): string => {
    const blob = Buffer.concat([lengthPrefixed(Buffer.from(type)), ...parts]);
    return `${type} ${blob.toString("base64")}${alias === "" ? "" : ` ${alias}`}\n`;
  };
  if (jwk.kty === "RSA") return line("ssh-rsa", mpint(bytes(jwk.e)), mpint(bytes(jwk.n)));
  if (jwk.crv === "Ed25519") return line("ssh-ed25519", lengthPrefixed(bytes(jwk.x)));
  const curve = curves[jwk.crv ?? ""];
  if (curve === undefined) throw refused("The key of this certificate cannot be written for OpenSSH");
  const point = Buffer.concat([Buffer.from([4]), bytes(jwk.x), bytes(jwk.y)]);
  return line(`ecdsa-sha2-${curve}`, lengthPrefixed(Buffer.from(curve)), lengthPrefixed(point));
}

interface Format {
  type: string;
  write: (certificate: X509Certificate, alias: string) => string;
}

const formats: Readonly<Record<string, Format>> = {
  "X509-PEM-CA": { type: "application/x-x509-ca-cert", write: pem },
  "X509-PEM": { type: "application/x-x509-cert", write: pem },
  "OPENSSH-PUBKEY": { type: "text/plain", write: ({ publicKey }, alias) => sshLine(publicKey, alias) },
};

const usual: Readonly<Record<Resource, { format: string; alias: string }>> = {
  "ca-certificate": { format: "X509-PEM-CA", alias: "" },
  "engine-certificate": { format: "X509-PEM", alias: "ovirt-engine" },
};

const refused = (detail: string): OvirtFault => new OvirtFault(400, "Operation Failed", [detail]);

const aliasMax = 255;

const showCertificate =
  ({ certificates }: Context): RequestHandler =>
  (req, res) => {
    const query = new URL(req.url, "http://localhost").searchParams;
    const [name, wanted, alias] = [query.get("resource"), query.get("format"), query.get("alias")];
    if (name === null) throw refused("Missing resource name");
    const resource = resources.find((each) => each === name);
    if (!resource) throw refused(`Resource '${name.slice(0, 64)}' is invalid`);
    const key = wanted ?? usual[resource].format;
    const format = Object.hasOwn(formats, key) ? formats[key] : undefined;
    if (!format) throw refused(`Format '${key.slice(0, 64)}' is invalid`);
    if (alias !== null && (alias.length > aliasMax || !/^[\x20-\x7e]*$/.test(alias)))
      throw refused("The alias is invalid");
    const text = resource === "ca-certificate" ? certificates?.authority : certificates?.current.cert;
    if (text == null) throw new OvirtFault(404, "Operation Failed", [`There is no ${resource}`]);
    const body = format.write(new X509Certificate(text), alias ?? usual[resource].alias);
    res.setHeader("content-type", format.type);
    res.setHeader("cache-control", "no-cache");
    res.setHeader("content-length", Buffer.byteLength(body));
    res.end(body);
  };

/** The authority's certificate, and the service's own, for clients that are to trust them (ovirt 2.2). */
export function pkiRoutes(context: Context): Router {
  const router = Router({ caseSensitive: true, strict: false });
  router.get("/ovirt-engine/services/pki-resource", showCertificate(context));
  return router;
}
