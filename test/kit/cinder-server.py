"""A whole OpenStack Cinder on 127.0.0.1 for tests: API, scheduler and volume service in one process, its database in a file.

usage: cinder-server.py SETTINGS, a JSON object:
  dir          a folder of its own
  port         where its API listens
  keystone     URL of the Keystone whose tokens it accepts
  user, password, project   who asks that Keystone
  backend      the section of cinder.conf for its one backend, after the name; absent: volumes are files, see below
  volumes      the folder of those files
  gib_shift    of which a "GiB" has 2 to the power of this many bytes: 30 is honest, less is quick
A file `clone-seconds` in that folder says how long a clone of such a file takes.
Prints "ready" when it answers.
"""
import eventlet

eventlet.monkey_patch()

import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sqlite3  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402

import __original_module_threading as original_threading  # noqa: E402

original_threading.current_thread.__globals__["_active"] = threading._active

settings = json.loads(sys.argv[1])
home = settings["dir"]

CONFIGURATION = """[DEFAULT]
state_path = {dir}
lock_path = {dir}/lock
my_ip = 127.0.0.1
host = storage
auth_strategy = keystone
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
api_paste_config = {dir}/api-paste.ini
resource_query_filters_file = {dir}/resource_filters.json
rootwrap_config = {dir}/rootwrap.conf
transport_url = fake://
enabled_backends = storage
default_availability_zone = nova
storage_availability_zone = nova
log_dir = {dir}/log
use_stderr = false
rpc_response_timeout = 60
periodic_interval = 10
report_interval = 5
service_down_time = 86400
volume_clear = none
quota_volumes = 200
quota_snapshots = 200
quota_gigabytes = 5000
image_conversion_dir = {dir}/conversion
[storage]
volume_backend_name = storage
{backend}
[database]
connection = sqlite:///{dir}/cinder.sqlite?timeout=60
sqlite_synchronous = false
[oslo_concurrency]
lock_path = {dir}/lock
[oslo_messaging_notifications]
driver = noop
[coordination]
backend_url = file://{dir}/lock
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = {user}
password = {password}
project_name = {project}
user_domain_name = Default
project_domain_name = Default
token_cache_time = 10
"""

FILES = """volume_driver = cinder_files.FileVolumeDriver
files_path = {volumes}
files_gib_shift = {gib_shift}
"""

PASTE = """[composite:osapi_volume]
use = call:cinder.api:root_app_factory
/: versions
/v3: v3
[composite:v3]
use = call:cinder.api.middleware.auth:pipeline_factory
keystone = request_id faultwrap sizelimit authtoken keystonecontext v3app
keystone_nolimit = request_id faultwrap sizelimit authtoken keystonecontext v3app
noauth = request_id faultwrap sizelimit noauth v3app
[pipeline:versions]
pipeline = request_id faultwrap versionsapp
[app:versionsapp]
paste.app_factory = cinder.api.versions:Versions.factory
[app:v3app]
paste.app_factory = cinder.api.v3.router:APIRouter.factory
[filter:request_id]
paste.filter_factory = oslo_middleware.request_id:RequestId.factory
[filter:faultwrap]
paste.filter_factory = cinder.api.middleware.fault:FaultWrapper.factory
[filter:sizelimit]
paste.filter_factory = oslo_middleware.sizelimit:RequestBodySizeLimiter.factory
[filter:noauth]
paste.filter_factory = cinder.api.middleware.auth:NoAuthMiddleware.factory
[filter:keystonecontext]
paste.filter_factory = cinder.api.middleware.auth:CinderKeystoneContext.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
"""


def write(name, text):
    with open(os.path.join(home, name), "w") as file:
        file.write(text)


def configure():
    for folder in ("lock", "log", "conversion"):
        os.makedirs(os.path.join(home, folder), exist_ok=True)
    os.makedirs(settings["volumes"], exist_ok=True)
    backend = settings.get("backend") or FILES.format(**settings)
    write("cinder.conf", CONFIGURATION.format(**{**settings, "backend": backend}))
    write("api-paste.ini", PASTE)
    write("rootwrap.conf", "[DEFAULT]\nfilters_path=/nonexistent\n")
    filters = {
        "volume": ["name", "status", "metadata", "bootable", "migration_status", "availability_zone", "group_id"],
        "backup": ["name", "status", "volume_id"],
        "snapshot": ["name", "status", "volume_id", "metadata"],
        "attachment": ["volume_id", "status", "instance_id", "attach_status"],
        "message": ["resource_uuid", "resource_type", "event_id", "request_id", "message_level"],
        "group": [], "group_snapshot": [], "pool": ["name", "volume_type"],
    }
    write("resource_filters.json", json.dumps(filters))


def main():
    configure()
    from oslo_config import cfg

    import cinder.cmd.volume  # noqa: F401: registers options
    from cinder import coordination, objects, rpc, service, utils, version
    from cinder.common import config

    from oslo_log import log as logging

    objects.register_all()
    cfg.CONF(["--config-file", os.path.join(home, "cinder.conf")], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(cfg.CONF, "cinder")
    utils.monkey_patch()
    from cinder.db import migration

    migration.db_sync()
    with contextlib.closing(sqlite3.connect(home + "/cinder.sqlite")) as database:
        database.execute("pragma journal_mode = wal")
    coordination.COORDINATOR.start()
    rpc.init(cfg.CONF)
    scheduler = service.Service.create(binary="cinder-scheduler", topic="cinder-scheduler", host="storage")
    volume = service.Service.create(
        binary="cinder-volume", host="storage@storage", service_name="storage", coordination=False,
        cluster=None,
    )
    api = service.WSGIService("osapi_volume")
    # The scheduler waits for what the volume service says of itself.
    for each in (volume, scheduler, api):
        each.start()
    print("ready", flush=True)
    eventlet.Event().wait()


main()
