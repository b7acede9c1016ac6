import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** As root, servers that refuse to run as root run as this user. */
export const unprivileged = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : null;

interface Certificate {
  /** PEM files: of the CA, the server's certificate, its key. */
  ca: string;
  cert: string;
  key: string;
}

/** A CA of its own and a certificate by it for 127.0.0.1 and `localhost`, in a folder that servers can enter. The key is the server's alone. */
export function makeCertificate(dir: string): Certificate {
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: dir, stdio: "pipe" });
  const key = ["-newkey", "rsa:2048", "-nodes"];
  openssl("req", "-x509", ...key, "-keyout", "ca.key", "-subj", "/CN=a CA", "-days", "2", "-out", "ca.crt");
  openssl("req", ...key, "-keyout", "server.key", "-subj", "/CN=localhost", "-out", "server.csr");
  writeFileSync(join(dir, "server.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1");
  const by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "server.ext"];
  openssl("x509", "-req", "-in", "server.csr", ...by, "-out", "server.crt");
  chmodSync(dir, 0o711);
  const files = { ca: join(dir, "ca.crt"), cert: join(dir, "server.crt"), key: join(dir, "server.key") };
  chmodSync(files.key, 0o600);
  if (unprivileged !== null) chownSync(files.key, unprivileged.uid, unprivileged.gid);
  return files;
}
