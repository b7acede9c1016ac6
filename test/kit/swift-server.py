"""A whole OpenStack Swift on 127.0.0.1, for tests: proxy, account, container and object server with one disk each.

usage: swift-server.py SETTINGS, a JSON object:
  dir               a folder of its own, on a file system with user attributes
  ports             four ports: proxy, account, container, object
  users             {"account:user": key}
  conditional_put   whether the S3 side passes If-None-Match on to Swift, which obeys it, or answers 501 as it comes
  versions          whether its containers can keep versions of objects
  identity          null, or {"url", "user", "password", "project"}: tokens of a Keystone there are accepted too
The proxy speaks Swift's API (/auth/v1.0, /v1/…) and S3's (everything else). Prints "ready" when all four answer.
"""
import json
import os
import pwd
import signal
import socket
import sys
import time
import types

settings = json.loads(sys.argv[1])
home = settings["dir"]
etc, disks = os.path.join(home, "etc"), os.path.join(home, "disks")
kinds = ("proxy", "account", "container", "object")
ports = dict(zip(kinds, settings["ports"]))
for folder in (etc, os.path.join(disks, "one")):
    os.makedirs(folder, exist_ok=True)


def section(title, **values):
    lines = ["%s = %s" % (key, value) for key, value in values.items()]
    return "\n".join(["[%s]" % title] + lines) + "\n\n"


def write(name, *sections):
    with open(os.path.join(etc, name), "w") as file:
        file.write("".join(sections))


def defaults(kind):
    return section(
        "DEFAULT",
        bind_ip="127.0.0.1",
        bind_port=ports[kind],
        user=pwd.getpwuid(os.geteuid()).pw_name,
        swift_dir=etc,
        devices=disks,
        mount_check="false",
        workers=0,
        # The proxy waits for that long before it removes a delete marker, whose own answer it cannot read.
        client_timeout=2 if settings["versions"] else 60,
        disable_fallocate="true",
        fallocate_reserve=0,
        log_address="/nonexistent",
        eventlet_debug="false",
    )


def backend(kind):
    parts = [defaults(kind), section("pipeline:main", pipeline="healthcheck %s-server" % kind)]
    parts += [section("app:%s-server" % kind, use="egg:swift#" + kind), section("filter:healthcheck", use="egg:swift#healthcheck")]
    parts += [section("%s-%s" % (kind, helper)) for helper in ("replicator", "updater", "auditor")]
    write(kind + "-server.conf", *parts)


def proxy():
    identity = settings["identity"]
    pipeline = ["catch_errors", "gatekeeper", "healthcheck", "cache", "bulk", "s3api"]
    pipeline += ["authtoken", "keystoneauth"] if identity else []
    pipeline += ["tempauth", "copy", "slo", "dlo", "versioned_writes", "symlink", "proxy-server"]
    users = {"user_" + name.replace(":", "_"): "%s .admin" % key for name, key in settings["users"].items()}
    parts = [defaults("proxy"), section("pipeline:main", pipeline=" ".join(pipeline))]
    parts.append(section("app:proxy-server", use="egg:swift#proxy", allow_account_management="true", account_autocreate="true"))
    for name in ("catch_errors", "gatekeeper", "healthcheck", "bulk", "copy", "dlo", "symlink"):
        parts.append(section("filter:" + name, use="egg:swift#" + name))
    parts.append(section("filter:cache", **{"paste.filter_factory": "tephra_cache:filter_factory"}))
    parts.append(section("filter:s3api", use="egg:swift#s3api", s3_acl="false", location="us-east-1"))
    parts.append(section("filter:slo", use="egg:swift#slo"))
    parts.append(section("filter:versioned_writes", use="egg:swift#versioned_writes", allow_object_versioning=settings["versions"]))
    prefix = {"reseller_prefix": "TEMP"} if identity else {}
    parts.append(section("filter:tempauth", use="egg:swift#tempauth", **prefix, **users))
    if identity:
        access = dict(
            www_authenticate_uri=identity["url"],
            auth_url=identity["url"],
            auth_type="password",
            username=identity["user"],
            password=identity["password"],
            project_name=identity["project"],
            user_domain_id="default",
            project_domain_id="default",
            delay_auth_decision="true",
        )
        factory = {"paste.filter_factory": "keystonemiddleware.auth_token:filter_factory"}
        parts.append(section("filter:authtoken", **factory, **access))
        parts.append(section("filter:keystoneauth", use="egg:swift#keystoneauth", operator_roles="admin"))
    write("proxy-server.conf", *parts)


def rings():
    from swift.common.ring import RingBuilder

    for name in ("account", "container", "object", "object-1"):
        place = ("127.0.0.1", ports[name.split("-")[0]])
        builder = RingBuilder(4, 1, 0)
        device = dict(id=0, region=1, zone=1, device="one", weight=1.0, meta="")
        device.update(ip=place[0], port=place[1], replication_ip=place[0], replication_port=place[1])
        builder.add_dev(device)
        builder.rebalance()
        builder.get_ring().save(os.path.join(etc, name + ".ring.gz"))


# Asked for, the proxy forgets all that it has cached: no token of auth version 1 is good any more.
forget_path = "/tests/forget"


class Cache:
    """Replaces a real proxy's memcached: here there is one process, so a dictionary suffices."""

    def __init__(self):
        self.entries = {}

    def get(self, key, raise_on_error=False):
        value, end = self.entries.get(key, (None, 0))
        return value if end == 0 or end > time.time() else None

    def set(self, key, value, serialize=True, time=0, min_compress_len=0, raise_on_error=False):
        now = sys.modules["time"].time()
        self.entries[key] = (value, now + time if time else 0)

    def incr(self, key, delta=1, time=0):
        value = max(0, int(self.get(key) or 0) + delta)
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0):
        return self.incr(key, -delta, time)

    def delete(self, key, server_key=None):
        self.entries.pop(key, None)

    def get_multi(self, keys, server_key):
        return [self.get(key) for key in keys]

    def set_multi(self, mapping, server_key, serialize=True, time=0, min_compress_len=0):
        for key, value in mapping.items():
            self.set(key, value, time=time)


def cache_filter(global_conf, **local):
    cache = Cache()

    def wrap(app):
        def call(environ, start_response):
            if environ["PATH_INFO"] == forget_path:
                cache.entries.clear()
                start_response("204 No Content", [])
                return []
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return call

    return wrap


def allow_conditional_put():
    """This release rejects the header before Swift sees it; later ones and S3 itself honour it."""
    from swift.common.middleware.s3api.s3request import S3Request

    check = S3Request._validate_headers

    def validate(self):
        condition = self.environ.pop("HTTP_IF_NONE_MATCH", None)
        check(self)
        if condition is not None:
            self.environ["HTTP_IF_NONE_MATCH"] = condition

    S3Request._validate_headers = validate


def keep_own_token():
    """Swift considers its own token stale two minutes before it expires: with a lifetime of seconds, before each request."""
    from keystoneauth1.identity.base import BaseIdentityPlugin

    BaseIdentityPlugin.MIN_TOKEN_LIFE_SECONDS = 1


def start(kind):
    pid = os.fork()
    if pid:
        return pid
    log = os.open(os.path.join(home, kind + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from swift.common.wsgi import run_wsgi

    options = {"verbose": True}
    if kind == "object":
        from swift.obj import server

        options["global_conf_callback"] = server.global_conf_callback
    os._exit(run_wsgi(os.path.join(etc, kind + "-server.conf"), kind + "-server", **options) or 0)


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET /healthcheck HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def main():
    write(
        "swift.conf",
        section("swift-hash", swift_hash_path_suffix="test", swift_hash_path_prefix="test"),
        section("storage-policy:0", name="gold", default="yes"),
        section("storage-policy:1", name="silver"),
        section("swift-constraints", max_header_size=32768),
    )
    for kind in kinds[1:]:
        backend(kind)
    proxy()
    from swift.common import utils

    # Must be read before anything accesses storage policies.
    utils.SWIFT_CONF_FILE = os.path.join(etc, "swift.conf")
    rings()
    module = types.ModuleType("tephra_cache")
    module.filter_factory = cache_filter
    sys.modules["tephra_cache"] = module
    if settings["conditional_put"]:
        allow_conditional_put()
    if settings["identity"]:
        keep_own_token()
    children = [start(kind) for kind in kinds]

    def stop(*_):
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    end = time.time() + 60
    while not all(answers(port) for port in ports.values()):
        ended, _ = os.waitpid(-1, os.WNOHANG)
        if ended or time.time() > end:
            print("a server ended early" if ended else "not ready within a minute", flush=True)
            stop()
        time.sleep(0.05)
    print("ready", flush=True)
    pid, status = os.wait()
    print("%s ended with %s" % (kinds[children.index(pid)], status), flush=True)
    stop()


main()
