"""Runs the real chunked backup drivers of an installed Cinder, without its services.

Reads one JSON request on standard input and prints one JSON answer:

  {"driver": "cinder.backup.drivers.posix.PosixBackupDriver",
   "settings": {"backup_posix_path": "/repository", "backup_file_size": 65536, ...},
   "known": [RECORD, ...],
   "steps": [{"do": "backup", "volume": FILE, "compression": "zlib", "backup": RECORD},
             {"do": "restore", "id": BACKUP, "target": FILE},
             {"do": "import", "url": BACKUP_URL}]}

A RECORD has id, volume_id, parent_id, container, service_metadata and size (GiB). The answer to a backup is its record as Cinder
has completed it, with the backup_url that Cinder exports; to an import, the record as Cinder has decoded it, and the one that it exports of what it has made of it: steps that follow
know the backup. Every answer says how many
seconds the step took. A step that fails answers {"error": TEXT}, and the next one runs.

Real are the drivers, the format code and the Backup object. The database is a dictionary.
"""
import eventlet

eventlet.monkey_patch()

import datetime  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What the libraries print is no answer.


class Columns(dict):
    """A row: by key, by .get, and iterated as pairs, which is how volume_meta is collected."""

    def __iter__(self):
        return iter(self.items())


class Database:
    """The few calls that the format code makes about the volume."""

    def __init__(self, volume):
        self.volume = volume

    def volume_get(self, context, volume_id):
        return self.volume

    def volume_update(self, context, volume_id, values):
        self.volume.update(values or {})
        return self.volume

    def volume_metadata_get(self, context, volume_id):
        return {}

    def volume_metadata_update(self, context, volume_id, metadata, delete):
        return metadata

    def volume_glance_metadata_get(self, context, volume_id):
        from cinder import exception
        raise exception.GlanceMetadataNotFound(id=volume_id)

    def volume_glance_metadata_delete_by_volume(self, context, volume_id):
        pass

    def volume_type_get(self, context, type_id):
        return {"id": type_id}


class Peer:
    def __init__(self, request):
        import cinder.db
        cinder.db.dispose_engine = lambda: None
        from cinder import context, objects
        from cinder.common import config  # noqa: F401  (registers the global options)
        from cinder.volume import volume_utils
        from oslo_config import cfg
        volume_utils.notify_about_backup_usage = lambda *args, **kwargs: None
        objects.register_all()
        import cinder.backup.manager  # noqa: F401  (registers the options of backups)
        from cinder.objects import backup as backups
        known = self.known = {}

        class Backup(backups.Backup):
            def save(self):
                self.obj_reset_changes()

            def refresh(self):
                pass

            @classmethod
            def get_by_id(cls, context, id, *args, **kwargs):
                if id not in known:
                    from cinder import exception
                    raise exception.BackupNotFound(backup_id=id)
                return known[id]

        objects.Backup = self.Backup = Backup
        cfg.CONF([], project="cinder", default_config_files=[], default_config_dirs=[])
        self.conf = cfg.CONF
        self.driver = request["driver"]
        self.context = context.RequestContext(user_id="user", project_id="project", is_admin=True)
        __import__(self.driver.rsplit(".", 1)[0])
        for key, value in request["settings"].items():
            self.conf.set_override(key, value)
        for record in request["known"]:
            self.remember(record, "available")

    def remember(self, record, status):
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        unset = dict.fromkeys(("parent", "fail_reason", "display_name", "display_description", "temp_volume_id",
                               "temp_snapshot_id", "snapshot_id", "restore_volume_id", "encryption_key_id", "deleted_at"))
        fields = {**unset, "user_id": "user", "project_id": "project", "host": "host", "availability_zone": "nova",
                  "status": status, "service": self.driver, "object_count": 0, "num_dependent_backups": 0, "metadata": {},
                  "data_timestamp": now, "created_at": now, "updated_at": now, "deleted": False,
                  "container": None, "service_metadata": None, "parent_id": None, **record}
        backup = self.Backup(self.context, **fields)
        backup.obj_reset_changes()
        self.known[backup.id] = backup
        return backup

    def open(self, backup, compression):
        from oslo_utils import importutils
        self.conf.set_override("backup_compression_algorithm", compression)
        driver = importutils.import_class(self.driver)(self.context)
        volume = Columns(id=backup.volume_id, size=backup.size, display_name="volume", display_description=None,
                         status="backing-up", volume_type_id=None, encryption_key_id=None, bootable=False)
        driver.db = driver.backup_meta_api.db = Database(volume)
        return driver

    def backup(self, step):
        backup = self.remember(step["backup"], "creating")
        driver = self.open(backup, step["compression"])
        with open(step["volume"], "rb") as volume:
            driver.backup(backup, volume)
        backup.status = "available"
        names = ("id", "volume_id", "parent_id", "container", "service_metadata", "size", "object_count")
        record = {name: getattr(backup, name) for name in names}
        record["backup_url"] = backup.encode_record(driver_info=driver.export_record(backup))
        return record

    def restore(self, step):
        backup = self.known[step["id"]]
        backup.status = "restoring"
        driver = self.open(backup, "none")
        with open(step["target"], "r+b") as volume:
            driver.restore(backup, backup.volume_id, volume)
        backup.status = "available"
        return {"restored": backup.id}

    def delete(self, step):
        backup = self.known[step["id"]]
        self.open(backup, "none").delete_backup(backup)
        return {"deleted": backup.id}

    def take(self, step):
        """What the manager does with a record (BackupManager.import_record)."""
        decoded = self.Backup.decode_record(step["url"])
        names = ("id", "volume_id", "parent_id", "container", "service_metadata", "size", "object_count", "service")
        answer = {name: decoded[name] for name in names}
        decoded.pop("driver_info")
        for key in ("name", "user_id", "project_id", "deleted_at", "deleted", "fail_reason", "status"):
            decoded.pop(key, None)
        own = {"service": self.driver, "availability_zone": "nova", "host": "host"}
        backup = self.remember({**decoded, **own}, "available")
        answer["backup_url"] = backup.encode_record(driver_info={})
        return answer


def main():
    request = json.load(sys.stdin)
    peer = Peer(request)
    actions = {"backup": peer.backup, "restore": peer.restore, "delete": peer.delete, "import": peer.take}
    done = []
    for step in request["steps"]:
        started = time.monotonic()
        try:
            answer = actions[step["do"]](step)
            done.append({**answer, "seconds": time.monotonic() - started})
        except Exception as error:
            done.append({"error": f"{type(error).__name__}: {error}"})
    answers.write(json.dumps(done))
    answers.flush()
    os._exit(0)  # The pools of native threads would wait for nothing.


main()
