"""A user of openstacksdk. usage: sdk.py VOLUME_ID; the way in is in the environment. Prints one JSON object."""
import json
import sys

import openstack

volume_id = sys.argv[1]
storage = openstack.connect().block_storage


def until(resource):
    return storage.wait_for_status(resource, "available", failures=["error", "error_restoring"], interval=0.2, wait=60)


full = until(storage.create_backup(volume_id=volume_id, name="sdk full", description="by the SDK", force=False))
more = until(storage.create_backup(volume_id=volume_id, name="sdk more", is_incremental=True))
found = storage.find_backup("sdk more", ignore_missing=False)
listed = [backup.name for backup in storage.backups(volume_id=volume_id, sort_key="created_at", sort_dir="asc")]
paged = [backup.name for backup in storage.backups(details=False, limit=1)]
refused = None
try:
    storage.delete_backup(full, ignore_missing=False)
except openstack.exceptions.BadRequestException as error:
    refused = error.details

target = until(storage.create_volume(size=more.size, name="sdk target"))
storage.restore_backup(more, volume_id=target.id)
until(storage.get_volume(target.id))
until(storage.get_backup(more.id))

for backup in (more, full):
    storage.delete_backup(backup, ignore_missing=False)
    storage.wait_for_delete(storage.get_backup(backup.id), interval=0.2, wait=60)
missing = storage.find_backup("sdk more", ignore_missing=True)
print(
    json.dumps(
        {
            "full": [full.name, full.description, full.is_incremental, full.metadata],
            "more": [more.name, more.is_incremental, more.volume_id == volume_id, more.id == found.id],
            "listed": listed,
            "paged": paged,
            "refused": refused,
            "target": target.id,
            "missing": missing,
        }
    )
)
