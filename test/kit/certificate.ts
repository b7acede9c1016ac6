import { execFile } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

const execute = promisify(execFile);

/**
 * Creates a CA in `dir`, and a certificate issued by it for 127.0.0.1 and localhost; PEM files. `owner`: the server's user, who alone may
 * read the key.
 */
export async function makeCertificate(
  dir: string,
  owner: { uid: number; gid: number } | null = null,
): Promise<{ ca: string; cert: string; key: string }> {
  mkdirSync(dir, { recursive: true });
  const file = (name: string): string => join(dir, name);
  const openssl = (...args: string[]): Promise<unknown> => execute("openssl", args);
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  await openssl(
    "req",
    "-x509",
    ...newKey,
    "-days",
    "2",
    "-subj",
    "/CN=Tests",
    "-keyout",
    file("ca.key"),
    "-out",
    file("ca.pem"),
  );
  await openssl("req", ...newKey, "-subj", "/CN=localhost", "-keyout", file("server.key"), "-out", file("server.csr"));
  writeFileSync(file("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
  const signing = [
    "-CA",
    file("ca.pem"),
    "-CAkey",
    file("ca.key"),
    "-CAcreateserial",
    "-days",
    "2",
    "-extfile",
    file("names"),
  ];
  await openssl("x509", "-req", "-in", file("server.csr"), ...signing, "-out", file("server.pem"));
  chmodSync(dir, 0o711);
  chmodSync(file("server.key"), 0o600);
  if (owner !== null) chownSync(file("server.key"), owner.uid, owner.gid);
  return { ca: file("ca.pem"), cert: file("server.pem"), key: file("server.key") };
}
