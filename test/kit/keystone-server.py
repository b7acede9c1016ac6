"""A whole OpenStack Keystone on 127.0.0.1, for tests, with its database in a file.

usage: keystone-server.py SETTINGS, a JSON object:
  dir            a folder of its own
  port           where it listens
  password       of the user admin in the project admin of the domain Default
  region         the one that is made
  token_life     seconds for which a token is good
Prints "ready" when it answers.
"""
import contextlib
import json
import os
import sqlite3
import sys

settings = json.loads(sys.argv[1])
home = settings["dir"]
url = "http://127.0.0.1:%d" % settings["port"]
os.environ["OS_KEYSTONE_CONFIG_DIR"] = home
configuration = os.path.join(home, "keystone.conf")


def configure():
    with open(configuration, "w") as file:
        file.write(
            """[DEFAULT]
use_stderr = false
log_file = {home}/keystone.log
[database]
connection = sqlite:///{home}/keystone.sqlite?timeout=60
[token]
expiration = {token_life}
allow_expired_window = 0
[fernet_tokens]
key_repository = {home}/fernet-keys
[credential]
key_repository = {home}/credential-keys
[cache]
enabled = true
backend = oslo_cache.dict
[identity]
password_hash_rounds = 4
""".format(**settings, home=home)
        )


def manage(*arguments):
    """Runs each command in a separate process: they share global state."""
    pid = os.fork()
    if pid == 0:
        from keystone.cmd import manage

        sys.argv = ["keystone-manage", "--config-file", configuration] + list(arguments)
        try:
            manage.main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit("keystone-manage %s failed" % arguments[0])


def let_readers_be():
    """An unfinished read keeps sqlite from committing, unless writes go to a separate log."""
    with contextlib.closing(sqlite3.connect(home + "/keystone.sqlite")) as database:
        database.execute("pragma journal_mode = wal")


def main():
    configure()
    manage("db_sync")
    let_readers_be()
    manage("fernet_setup", "--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid()))
    access = ["--bootstrap-password", settings["password"], "--bootstrap-region-id", settings["region"]]
    manage("bootstrap", *access, "--bootstrap-public-url", url + "/v3", "--bootstrap-internal-url", url + "/v3")
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from keystone.server import wsgi

    class Quiet(WSGIRequestHandler):
        def log_message(self, *arguments):
            pass

    class Server(WSGIServer):
        """One request at a time: sqlite connections left over by another thread keep their locks."""

        request_queue_size = 128

    sys.argv = sys.argv[:1]
    application = wsgi.initialize_public_application()
    server = make_server("127.0.0.1", settings["port"], application, Server, Quiet)
    print("ready", flush=True)
    server.serve_forever()


main()
